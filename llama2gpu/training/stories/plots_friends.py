"""Plots about friendship: sharing, new friends, quarrels, lies and being brave together."""

PLOTS = (
    """
# shy new friend
$toy = @toys
{open}
<likes>
{One} day, a new {f_kind} named {friend} came to live [next door|across the road|nearby].
+ {Friend} was so shy that {f_he} hid behind a tree.
- {Friend} did not talk to anyone. {F_he} only looked at {f_his} feet.
- When the others played, {friend} sat alone and watched.

+ {Hero} saw this and wanted to help.
- {Hero} remembered how it felt to be alone.
- "{F_he} looks lonely," {hero} told {his} {mom}.
+ First {hero} waved, but {friend} [ran away|turned {f_his} head|only looked at the ground].
- First {hero} called, "Hello!" But {friend} did not answer.
+ Then {he} asked {friend} to play, but {friend} only shook {f_his} head.
- Then {he} told a funny joke. {Friend} smiled a little, but still said nothing.
"Give {f_him} time," said {his} {mom}. "[A friend is worth waiting for|Shy hearts open slowly]."

+ The next day, {hero} put {his} {color} {toy} on the grass and sat down [beside it|to wait].
- The next day, {hero} brought {his} {color} {toy} and sat down near {friend} without a word.
+ Step by step, {friend} came closer.
- After a long time, {friend} came and touched the {toy}.
"I like your {toy}," {friend} [said in a small voice|whispered].
"[You can play with it too|We can share it]," [said|answered] {hero}.
+ Soon the two of them were laughing together, and {friend} was not shy anymore.
- They played with the {color} {toy} until it was time for supper.
+ {Hero} learned that being kind can be very quiet.
- From then on, {hero} and {friend} met every day.
- "Now I have a friend," said {friend}, and {hero} said, "So do I."
<end>
""",
    """
# sharing the only one
$snack = @treats
{open}
<friend_is>
<day>, {his} {mom} [baked|made] a small {snack} and gave it to {hero}.
+ It smelled so good that {hero} wanted to eat all of it {himself}.
- It was warm and sweet, and {hero} did not want to give any of it away.
"Remember to share," said {his} {mom}.

+ {Hero} took the {snack} and hid [behind the shed|under a tree|in the tall grass].
- {Hero} carried the {snack} to a quiet place where nobody could see {him}.
+ Just then, {friend} came by. "What do you have there?" {f_he} asked.
- But {friend} found {him} there. "Oh, that smells good!" said {friend}.
"Nothing," said {hero}, and [put the {snack} behind {his} back|covered the {snack} with a leaf].
+ {Friend} looked sad and walked away.
- "Oh," said {friend} softly, and {f_he} went home alone.
+ {Hero} took a bite, but it did not taste good at all.
- {Hero} ate a little piece. It was sweet, but {his} heart was not.
<think>

+ {Hero} jumped up and ran after {friend}. "Wait!" {he} called.
- So {hero} ran all the way to {friend}'s house.
"I am sorry, {friend}. I have a {snack}, and I want to share it with you," {he} said.
+ {Friend} smiled. "That is [very |]kind of you," {f_he} said.
- {Friend} was surprised and happy. "Thank you, {hero}!" {f_he} said.
They sat down side by side and ate the {snack} to the last crumb.
+ "It tastes much better now," said {hero}.
- And this time it tasted [wonderful|like sunshine].
+ {Hero} learned that sweet things are sweeter when you share them.
- After that, {hero} always [cut the cake in two|shared with {his} friends].
- {His} {mom} saw them and was proud of {hero}.
<end>
""",
    """
# a lie confessed
$thing = vase | cup | lamp | plate | bowl | jar | teapot | picture
$toy = ball | hoop | toy plane | kite
{open}
<likes>
On the shelf stood a {color} {thing} that {his} {mom} loved very much.
+ <day>, {hero} was playing with {his} {toy} inside.
- {One} rainy day, {hero} had to stay inside and played with {his} {toy}.
+ The {toy} flew across the room and hit the {color} {thing}. Crash!
- Bump! {He} ran into the shelf, and down fell the {color} {thing}.
The {thing} [broke into many pieces|was broken].

<worried>
+ {He} hid the pieces under [the rug|the sofa|an old box].
- Quickly, {he} put the pieces in [a drawer|a bag] and closed it.
Soon {his} {mom} came in. "Where is my {thing}?" {m_he} asked.
+ "I do not know," said {hero}. "Maybe the wind [broke|took] it."
- "I did not see it," said {hero}, and looked away.
{His} {mom} said nothing, but {m_he} looked sad.
+ All evening, {hero} had a pain in {his} tummy. {He} could not eat.
- That night, {hero} could not sleep. The lie felt like a stone in {his} heart.

+ At last {he} got up and went to {his} {mom}.
- Then {hero} could not bear it any longer. {He} ran to {his} {mom}.
"I broke the {color} {thing}," {he} said. "[And I told a lie|I did not tell the truth]. I am sorry."
+ {His} {mom} hugged {him}. "Thank you for telling me," {m_he} said. "[That was very brave|I love
  you more than any {thing}]."
- "It takes a brave heart to tell the truth," said {his} {mom}, and {m_he} held {him} tight.
+ Together they glued the pieces. The {thing} had many lines now, but {hero} liked it even more.
- The next day, they made a new {thing} out of clay and painted stars on it.
+ {Hero} felt as light as a feather.
- {Hero} learned that the truth makes the heart light.
- And {hero} never told a lie about it again.
<end>
""",
    """
# race
$prize = medal | cup | ribbon | crown of leaves
$goal, at_goal = @places
{open}
<friend_is>
+ <day>, there was a big race to {goal}.
- {One} day, everyone came to see the great race to {goal}.
The winner would get a {color} {prize}.
+ "I want to win the {prize}!" said {hero}.
- {Hero} had run every day to get ready.
+ {Friend} was in the race too.
- "May the best one win," said {friend}.

"Ready, set, go!" called {elder}, and they all began to run.
+ {Hero} ran as fast as the wind. Soon {he} was in front.
- {Hero} was fast, and soon only {friend} was ahead of {him}.
- At first {hero} was last, but {he} ran faster and faster.
+ Then {he} heard a cry. {Friend} had tripped over a root and fallen down.
- Suddenly {friend} slipped on the wet grass and hurt {f_his} knee.
+ {Hero} looked at the {color} {prize} at the end of the path. Then {he} looked at {friend}.
- {Hero} could see the {color} {prize}. It was so close!
+ For a moment, {he} did not know what to do.
- "If I stop, I will lose," {he} thought. "But {friend} needs me."

{Hero} stopped and [turned around|went back]. "[Hold on to me|Take my arm], {friend}," {he} said.
+ Step by step, they walked to {goal} together.
- Slowly, side by side, they came to {goal} last of all.
+ Everyone clapped, louder than for the winner.
- To their surprise, everyone cheered.
{Elder} [smiled|nodded] and said, "[A good heart wins too|You lost the race, but you won a friend]."
+ Then {e_he} gave {hero} a {prize} as well.
- And {e_he} cut the {color} {prize} from a paper and gave it to them both.
- "Thank you," {friend} said to {hero}. "You are better than any {prize}."
+ {Hero} was [proud|happier than if {he} had won].
- {Hero} knew that {he} had done the right thing.
<end>
""",
    """
# quarrel and making up
$toy = @toys
$place, in_place = @places
{open}
<friend_is>
+ <day>, they found an old {color} {toy} {in_place}.
- <day>, the two friends were playing {in_place}, and there they found a {color} {toy}.
"I saw it first!" said {hero}. "No, I saw it first!" said {friend}.
+ {Hero} pulled, and {friend} pulled.
- They both held on to it and would not let go.
+ "Then I do not want to play with you anymore!" shouted {friend}.
- "You are not my friend anymore!" shouted {hero}.
And they both went home [angry|in tears].

+ At home, {hero} tried to play alone, but it was no fun.
- {Hero} sat in {his} room. It was very quiet without {friend}.
+ {He} built a tower, but nobody was there to see it.
- {He} told a joke, but nobody was there to laugh.
+ <sad>
- "I miss {friend}," {he} said.
"What is more important, the {toy} or your friend?" asked {his} {mom}.
<think>

+ {Hero} ran back to {place}. And there was {friend}!
- So {hero} went back to {place}, and who was sitting there? It was {friend}!
"I am sorry," they both said at the same time, and then they [laughed|had to laugh].
+ "You can have the {toy} today," said {friend}, "and I will have it tomorrow."
- "Let us play with the {toy} together," said {hero}. "It is more fun with two."
- "We can keep it {in_place}," said {hero}, "and it will belong to both of us."
+ So they shared the {color} {toy} and were friends again.
- They shook {hands} and played with the {color} {toy} until evening.
+ They learned that a friend is worth more than any toy.
- They still had a quarrel now and then, but never for long.
<end>
""",
    """
# sick friend
$gift, make = card; drew a card with a big sun on it | song; made up a funny song | picture; painted
  a picture of the two of them | story; thought of a long funny story | poem; wrote a small poem
$soup = chicken soup | carrot soup | hot tea with honey | warm milk | tomato soup
{open}
<friend_is>
+ <day>, {hero} knocked at {friend}'s door, but {friend} could not come out to play.
- <day>, {hero} waited and waited, but {friend} did not come.
+ {Friend} was sick and had to stay in bed.
- "{Friend} has a bad cold," said {friend}'s mother. "{F_he} must rest today."

<sad>
+ "How can I make {f_him} feel better?" {he} asked {his} {mom}.
- "I want to help {friend}," {he} told {his} {mom}.
"What would make you happy if you were sick?" {his} {mom} asked.
<think>
+ First {he} picked some {color} flowers {near}, but the wind blew them away.
- First {he} wanted to buy a present, but {he} had no money.
Then {he} {make}. {His} {mom} made some {soup}, and off they went.

+ {Friend} lay under a thick blanket and looked very pale.
- {Friend} was in bed with a red nose and a warm scarf.
"I have a {gift} for you," said {hero}, "and some {soup}."
+ {Friend} began to smile. Then {f_he} laughed until {f_he} had to cough.
- {Friend}'s eyes grew bright. "A {gift}? Just for me?" {f_he} asked.
+ {Hero} stayed all afternoon and read stories to {f_him}.
- They talked and laughed until the {soup} was gone.
+ Two days later, {friend} was well again.
- The next week, {friend} could run and play again.
"It was the {gift} that made me well," {friend} said. "[And the {soup}|And my best friend]."
+ {Hero} learned that a kind thought can be the best medicine.
- And they both knew that good friends help each other on gray days too.
<end>
""",
    """
# the too loud drum
$toy, sound = drum; boom, boom, boom | trumpet; toot, toot, toot | whistle; tweet, tweet, tweet |
  bell; ding, ding, ding | horn; honk, honk, honk | cymbal; clang, clang, clang
{open}
+ For {his} birthday, {hero} got a {color} {toy} from {his} {mom}.
- <day>, {hero} found a {color} {toy} in an old box.
"{Sound}!" went the {toy}. {Hero} loved that sound.
+ {He} played it in the morning, and {he} played it at night.
- {He} played it from breakfast until supper.

+ "It is too loud," said {his} {mom}. "[My ears hurt|I cannot hear my own words]."
- {His} {mom} put {m_his} {hands} over {m_his} ears. "Not in the house, please!" {m_he} said.
+ So {hero} took the {color} {toy} outside, but the birds flew away.
- So {hero} went into the yard, but there {he} woke up {friend}, a {f_kind} who was sleeping in the
  sun.
+ Then {he} played it near {elder}'s window. "I am trying to sleep," said {elder}.
- Then {he} played it by the road, and {elder}, the {work}, dropped a basket of eggs.
+ <sad>
- "Nobody likes my {toy}," {he} said.

+ That evening, a thick fog came up, and {friend} did not come home.
- Later that day, a gray fog covered everything, and {friend} was lost in it.
+ Everyone called and called, but nobody could see anything.
- "We cannot find the way to {friend}!" the others cried.
Then {hero} [had an idea|knew what to do]. {He} [climbed the hill|stood on the wall] and played as
  loudly as {he} could.
"{Sound}!" went the {toy}.
+ Far away, {friend} heard it and followed the sound all the way home.
- And out of the fog came {friend}. "I followed your {toy}!" {f_he} cried.
+ "What a fine {toy}," said {elder}, and everyone [clapped|laughed].
- Now nobody was angry about the noise.
+ From then on, {hero} played [softly|outside, far from the windows], but everyone knew that a loud
  {toy} can be a good thing.
- {Hero} learned that there is a time to be quiet and a time to be loud.
<end>
""",
    """
# the smallest one
$place, in_place = @places
$lost = ring | coin | key | button | gold pin
$hole = wall | rock | log | floor | tree stump
{open}
{Hero} was the smallest of all, and the others often [laughed about it.|said, "You are too small."]
+ When they played ball, {he} was too short. When they climbed, {he} was too slow.
- "You cannot help us, {hero}," they always said. "You are too little."
<sad>

+ <day>, {elder}, the old {work}, came to {place} in tears.
- <day>, they were all playing {in_place} when {elder}, the {work}, began to cry.
"My {lost} fell into a hole in the {hole}!" said {elder}.
+ {Friend}, a big strong {f_kind}, tried to lift the {hole}, but it was too heavy.
- {Friend}, the biggest {f_kind} of all, tried to reach it, but {f_his} arm was too thick.
+ Then they tried it with a [long stick|piece of string], but the {lost} only fell deeper.
- Then someone tried it with a [spoon|hook], but that did not work.
"Let me try," said {hero} in a small voice.

+ {Friend} wanted to laugh, but {elder} said, "Yes, please try."
- Everyone looked at {him} in surprise.
+ {Hero} put {his} thin little arm into the hole, deeper and deeper.
- {Hero} lay down flat and reached into the hole.
+ "I can feel something!" {he} called. And out came the {lost}!
- Slowly, slowly, {he} pulled {his} arm out again. And there was the {lost}!
"[You are small, but you are a great help|What a clever {kind} you are]," said {elder}.
+ "I am sorry that I laughed at you," said {friend}. "[Will you play with us|Can we be friends]?"
- And {friend} lifted {him} up so that everyone could see {him}.
+ <glad>
- From that day on, nobody said that {hero} was too small.
+ Everyone is good at something, even the smallest one.
- {Hero} knew now that big and small are both good.
<end>
""",
)
