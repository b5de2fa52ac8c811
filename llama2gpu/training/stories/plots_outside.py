"""Plots outdoors: storms, animals to save, seeds, snow, water, stars and maps."""

PLOTS = (
    """
# storm (child)
$place, in_place = @places
{open}
<pet_is>
+ <day>, {hero} and {petname} went to play {in_place}.
- <day>, they went to {place} together.
+ Soon the sky grew dark, and the wind began to blow.
- But then big black clouds came up over the hills.
Boom! There was thunder, and {petname} [was so afraid that {p_he} ran away|ran away in fear].

"{Petname}! {Petname}!" called {hero}, but the wind was louder.
+ {He} looked under the trees, but {petname} was not there.
- First {he} ran up and down the path, but {he} could not see {petname}.
+ Then {he} followed some little footprints, but the rain washed them away.
- Then {he} whistled, but only the thunder answered.
<worried>
+ {Elder}, the {work}, saw {him} in the rain. "Come inside, child!" {e_he} called.
- Just then, {elder}, the {work}, came by with a big {color} umbrella.
"I must find {petname}," said {hero}. "{P_he} is all alone."
"Then we will look together," said {elder}.

+ They walked slowly and listened. Then they heard a tiny sound.
- They went from door to door and looked everywhere.
+ Under [an old wagon|a bench|a bush] sat {petname}, wet and shaking.
- There, in a dry corner behind a [wall|barrel], sat the {p_color} {pet}.
{Hero} put {petname} under {his} coat. "I have you now," {he} whispered.
+ {Petname} licked {his} nose and closed {p_his} eyes.
- {Petname} pushed {p_his} wet nose into {hero}'s neck.
+ Soon the storm was over, and a rainbow stood in the sky.
- When they came home, {his} {mom} had hot [soup|cocoa] for everyone.
+ "Thank you," said {hero}. "[We were not so afraid with you|You were so kind to us]."
- {Hero} learned that nobody is afraid for long when someone holds them.
<end>
""",
    """
# stuck kitten
$tree = apple tree | tall oak | pear tree | pine tree | old willow | cherry tree
$soft = @soft
{open}
<likes>
+ <day>, {hero} heard a small cry. "Meow! Meow!"
- <day>, on the way home, {hero} heard a soft sound high above {him}.
In the {tree} sat a {soft} {p_color} kitten. It could not get down.
+ "Do not be afraid, little one," {hero} called. "I will help you."
- "Poor kitten!" said {hero}. "How can I help you?"

+ First {he} held up a piece of fish, but the kitten was too afraid to move.
- First {he} called and called, but the kitten only held on tighter.
+ Then {he} tried to climb up, but the first branch was too high.
- Then {he} stood on a box, but it was not high enough.
<think>
<friend_came>
"You can stand on my back," said {friend}.
+ {Hero} climbed up, and now {he} could almost reach the kitten. Almost!
- But even the two of them together were not tall enough.
+ So {friend} ran and got {elder}, who had a long ladder.
- "{Elder} has a ladder!" said {friend}, and off {f_he} ran to get it.

{Elder} held the ladder, and {hero} climbed up, step by step.
+ "Come here, little one," {he} said softly, and the kitten jumped into {his} arms.
- {He} reached out slowly and took the kitten in {his} arms.
+ It was shaking at first. Then it began to purr.
- The kitten put its head on {his} shoulder and purred.
"[Well done|You were very brave], {hero}," said {elder}.
+ The kitten had no home, so {his} {mom} said, "It can stay with us."
- {His} {mom} looked at the kitten. "I think that it wants to stay with you," {m_he} said.
They called it {petname}.
+ And every night, {petname} slept at the end of {hero}'s bed.
- {Petname} never climbed so high again, but {p_he} often sat under the {tree}.
<end>
""",
    """
# seed that grows
$plant = @flowers
$pot = pot | cup | bucket | box | jar
{open}
<likes>
<day>, {elder}, the {work}, gave {him} a tiny seed. "Take good care of it," {e_he} said.
+ {Hero} put the seed in a {color} {pot} with soft earth.
- {Hero} filled a {color} {pot} with earth and put the seed inside.

+ {He} gave it water and waited. The next morning, {he} looked. Nothing!
- {He} sat down in front of the {pot} and waited until supper, but nothing happened.
+ Then {he} sang a song for the seed. Still nothing.
- On the second day, {he} gave it so much water that the {pot} ran over. Still nothing.
"Maybe it is [sleeping|a bad seed]," said {friend}, a {f_kind} who came to look.
<sad>
+ "Seeds need time," said {his} {mom}. "Some things grow where we cannot see them."
- "Do not dig it up," said {his} {mom}. "A little water, a little sun, and a lot of time."

+ So {hero} put the {color} {pot} in the window and gave it a little water every day.
- Day after day, {hero} watered the seed and waited.
It rained, and the sun shone, and it rained again.
+ And one morning, there was a tiny green leaf!
- Then, early in the morning, {he} saw something small and green.
"It is growing!" {hero} [cried|called] so loudly that {friend} came running.
+ The plant grew as tall as {his} nose, and then it opened its first flower.
- Every day it was a little taller, and at last there was a bud.
It was [a beautiful|a lovely|the most beautiful] {plant}.
+ "You were worth the wait," {hero} told it.
- "You waited, and here it is," said {elder}, and {e_he} was proud of {hero}.
+ When summer was over, the {plant} had new seeds, and {hero} gave one to {friend}.
- {Hero} gave the first seed of the {plant} to {friend}, so that {f_he} could learn to wait too.
+ {Hero} learned that good things take time.
- And in the next year, there were {plant}s [all over the yard|everywhere].
""",
    """
# snow day
$nose = carrot | pine cone | red apple | potato
$hat = hat | scarf | cap
{open}
+ {One} winter morning, everything was white. It had snowed all night!
- When {hero} woke up {one} morning, the whole world was white and quiet.
+ <glad>
- "Snow! Snow!" {he} shouted.
{He} put on {his} {color} {hat} and ran outside to {his} friend {friend}, {f_who}.
"Let us build the biggest snowman of all," said {friend}.

+ They rolled a big ball, but it rolled down the hill and broke.
- The first ball was so big that they could not lift it.
<notgiveup>
+ Then they made a small one, but the sun was warm, and its head fell off.
- The second snowman leaned to one side, and plop, it fell over.
+ "We need help," said {hero}. So {he} called {his} {mom}.
- {Elder}, the {work}, saw them and laughed. "Put it in the shade!" {e_he} called.
Together they pushed and rolled and lifted.

+ At last the snowman stood there, as tall as the door.
- And this time, the snowman stood straight and tall.
{Friend} gave him a {nose} for a nose, and {hero} gave him the {color} {hat}.
+ "He looks cold," said {friend}. "No," said {hero}, "he looks happy."
- "Hello, Mr. Snow," said {hero}, and it seemed that the snowman smiled.
+ Then they went inside and drank hot cocoa by the fire.
- {His} {mom} made hot cocoa, and they drank it with cold red noses.
From the window they could see the snowman with {his} {color} {hat}.
+ A week later, the snow melted. Only the {nose} and the {color} {hat} lay in the grass.
- When spring came, the snowman went away, and only the {color} {hat} was left.
"[He will come back next winter|See you next year, Mr. Snow]," said {hero}.
<end>
""",
    """
# learning to swim
$place = lake | river | pond | sea
{open}
+ All {his} friends loved to swim in the {place}. But {hero} was afraid of the water.
- In the summer, everyone went to the {place} to swim. Only {hero} stayed on the sand.
"Come in, the water is warm!" called {friend}, a {f_kind} who could swim very well.
+ But {hero} shook {his} head and held {his} {color} towel.
- "Maybe tomorrow," said {hero}, and {he} sat down on {his} {color} towel.
+ In truth, {he} wanted to swim more than anything.
- {He} looked at the others and wished that {he} were not afraid.

+ <day>, {he} put one foot in the water. It was cold! {He} jumped back.
- <day>, {he} went in up to {his} knees, but then a wave came, and {he} ran away.
+ Then {he} tried with {his} eyes closed, but {he} got water in {his} nose.
- The next day, {he} went in a little deeper, but {he} slipped and had to cough.
<sad>
+ "I was afraid too," {friend} told {him}. "[Somebody held me|I had help]. Now I will hold you."
- {His} {mom} saw it. "Hold on to me," {m_he} said. "I will not let go until you tell me."

+ Slowly they went into the water together. "Kick your feet," {friend} called. "Kick, kick, kick!"
- "Lie on the water like a leaf," said {his} {mom}. {Hero} tried it, and the water carried {him}.
+ {Hero} kicked and splashed. One, two, three strokes!
- {He} took a deep breath and moved {his} arms and legs like a frog.
And suddenly nobody was holding {him}. {He} was swimming!
<glad>
+ "I can swim!" {he} shouted to everyone at the {place}.
- "Look, {Mom}! I can swim!" {he} called.
All that summer, {hero} and {friend} swam together like two fish.
+ {Hero} learned that you can be afraid and brave at the same time.
- And the {color} towel was always wet from then on.
<end>
""",
    """
# night sky
$wish = to touch a star | to have a star of {his} own | to put a star on {his} shelf
$tool, fail = long stick; it was much too short | ladder; the sky was still far away | net;
  there was only the wind in it | kite; the string was not long enough
{open}
Every night {he} looked up at the stars. {He} wished {wish}.
+ <day>, {he} told {his} friend {friend}, {f_who}, about it.
- "Stars are too far away," said {friend}, {his} friend.
"We can try," said {hero}. And so they waited until it was dark.

+ First they took a {color} {tool}, but {fail}.
- {Hero} had brought a {color} {tool}, but {fail}.
+ Then they climbed the highest hill. Still the stars were far above them.
- Then {hero} stood on {friend}'s shoulders and jumped. They both fell down in the soft grass.
<sad>
+ {Elder}, the {work}, was out for a walk and sat down next to them.
- Then {elder}, the {work}, came up the path with a little lamp.
"We want a star," said {hero}, "but they are all too high."

{Elder} smiled. "[Come with me|Then I will show you something]," {e_he} said.
+ {E_he} led them to the pond. The water was still, and it was full of stars.
- They walked to a quiet pond. There, in the dark water, all the stars were shining.
+ {Hero} put {his} {hands} into the water, and a star lay in them and danced.
- {Hero} bent down and touched a star. It was cool and wet and made little rings.
"[Now I have held a star|I touched it]!" {he} whispered.
+ "You cannot keep it," said {elder}, "but it will be here every night."
- "The best things belong to everyone," said {elder} softly.
+ {Friend} and {hero} lay on their backs and counted until they were sleepy.
- They sat there for a long time and did not say a word.
+ {Hero} put the {color} {tool} away. {He} did not need it anymore.
- When {hero} came home, {he} told {his} {mom}, "Tonight I had a thousand stars."
<end>
""",
    """
# treasure map
$goal, at_goal = @places
$at_first = behind the well | under the old oak | beside a big rock | near the fence | by the road
$thing = tin box | wooden chest | clay pot | leather bag
$gold = shiny buttons | glass marbles | old coins | smooth stones | letters | shells | toy soldiers
{open}
<friend_is>
+ <day>, they found an old map in a [bottle|book|drawer|box]. On it was a big {color} cross.
- <day>, the wind blew a piece of paper to their feet. It was a map with a {color} cross on it!
"It is a treasure map!" said {hero}. "[Let us go|Come on]!"
+ They packed some [bread|apples|nuts] and a shovel and went off.
- {Friend} took a shovel, and {hero} carried the map.

+ First they dug {at_first}, but they found only an old shoe.
- "It must be {at_first}," said {friend}. They dug and dug, but found only worms.
+ Then they had a little quarrel, because each wanted to hold the map.
- Then it began to rain, and they had to wait under a tree.
- Then they lost their way and had to ask {elder}, the {work}.
"Wait," said {hero}. "[We are holding it upside down|We must turn the map around]!"
+ They turned the map, and now it was easy. The {color} cross was {at_goal}.
- They looked again, and the {color} cross was {at_goal}.

+ They ran to {goal} and began to dig. Clonk! There was something hard.
- There they dug until the shovel hit something. Clonk!
It was a {thing}, full of {gold}. There was a letter too.
+ {Hero} read, "Whoever finds this, share it with a friend."
- The letter said, "The real treasure is the one who came with you."
+ They looked at each other and [laughed|smiled]. Then they shared the {gold}.
- "We did it together," said {friend}, and they put the {gold} in two piles.
+ They kept one for themselves and hid the {thing} again for somebody else.
- {Hero} showed {his} {mom} the {gold}. "I hid that when I was little," {m_he} said with a smile.
<end>
""",
    """
# kite in a tree
$thing = kite | balloon | paper plane | hat | toy plane | scarf
$place, in_place = @places
$snacks = @snacks
$tree = apple tree | tall oak | pear tree | pine tree | old willow | maple tree
{open}
+ <day>, {hero} went to {place} with {his} {color} {thing}.
- {One} windy day, {hero} took {his} {color} {thing} to {place}.
+ Whoosh! A strong wind came and took the {thing} away.
- The wind blew harder and harder, and suddenly the {thing} flew off.
It flew up, up, up and got stuck in [a|the top of a] {tree}.
<sad>

+ {Hero} jumped as high as {he} could, but {he} could not reach it.
- First {he} shook the {tree}, but only leaves fell down.
+ Then {he} threw a [stick|ball|shoe] at it, and that got stuck too!
- Then {he} tried to climb, but the trunk was too smooth.
<friend_came>
"I am good at climbing," said {friend}, but after two branches {f_he} was afraid and came down.
+ "Let us ask the wind," said {hero}. "The wind put it there. Maybe the wind can bring it back."
- "Then we must wait," said {friend}. "The wind can be kind, too."

+ So they sat down under the {tree} and waited. They told each other stories.
- They waited together and ate some {snacks} that {friend} had in {f_his} bag.
+ And then, whoosh, a big wind came, and the {color} {thing} fell right into {hero}'s lap!
- At last there was a rustle in the leaves, and down came the {color} {thing}.
<glad>
+ "[We got it back|Here it is]!" said {friend}. "Can I hold it too?"
- It had a small hole now, but that did not matter.
"Yes," said {hero}. "[Let us hold it together|We can take turns]."
+ And so they played with the {thing} until the sun went down.
- All afternoon they ran {in_place}, and this time they held on tight.
+ {Hero} had lost a {thing} for an hour, but {he} had found a friend.
- {Hero} learned that waiting is easy with a friend.
<end>
""",
)
