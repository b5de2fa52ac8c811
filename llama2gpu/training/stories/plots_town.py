"""Plots with neighbours, in town and on the farm: helping, markets, bridges, gardens, boats."""

PLOTS = (
    """
# helping an old neighbour
$work1, done1 = pick apples; basket was full | carry wood; wood was by the stove | sweep the
  leaves; yard was clean | water the garden; flowers were wet | paint the fence; fence was white
$gift = @treats
{open}
<elder_is>
{E_he} was very old now, and {e_his} back hurt.
+ <day>, {hero} saw that {e_he} wanted to {work1}, but it was too hard for {e_him}.
- <day>, {hero} looked over the fence. {Elder} tried to {work1} and had to rest after every minute.
"I can help you," said {hero}.

+ At first {hero} worked too fast and fell over a {color} bucket.
- At first it was harder than {he} thought. {He} slipped and sat down in a {color} bucket.
+ {Elder} laughed. "Slowly," {e_he} said. "Good work needs no hurry."
- "Are you hurt?" asked {elder}. "No," said {hero}, "only wet."
+ Then {friend}, {f_who}, came by. "Come and play!" {f_he} called.
- Soon {hero}'s friend {friend}, {f_who}, called, "Come with me to play ball!"
"I want to finish this first," said {hero}. "[You can help me|Two are faster than one]."
+ So {friend} came in, and they worked side by side.
- {Friend} looked at the work, and then at {hero}. "Good," {f_he} said. "I will help too."

+ Before the sun went down, the {done1}.
- In the evening they were tired, but the {done1}.
"You have made an old heart very glad," said {elder}, and {e_he} brought out a warm {gift}.
+ They sat on the bench together, and {elder} told them stories of long ago.
- They ate it all, and {elder} told them how {e_he} had been a small child {near}.
+ From that day on, they came to help every week, and there was always a {gift} waiting.
- "Can we come again?" asked {friend}. "My door is always open," said {elder}.
+ {Hero} learned that helping makes two people happy.
- {His} {mom} saw {his} dirty {hands} and was very proud.
<end>
""",
    """
# bridge
$goal = the mill | the farm | the orchard | the old barn | the meadow | the well
$stream = stream | brook | little river | creek
$bring = @treats
{open}
+ <day>, {his} {mom} gave {him} a {color} basket with a {bring} for {elder}.
- <day>, {hero} packed a {bring} in a {color} basket. It was for {elder}, who lived far away.
"Go over the bridge, and then past {goal}," said {his} {mom}.
+ But when {hero} came to the {stream}, the bridge was gone. The rain had washed it away.
- But the bridge over the {stream} was broken!

+ First {hero} tried to jump, but the {stream} was too wide.
- First {he} looked for stones to step on, but the water was too deep.
+ Then {he} put a branch across, but it broke with a loud crack.
- Then {he} walked a long way up the {stream}, but there was no other bridge.
<friend_came>
+ "I want to cross too," said {friend}. "But how?"
- "What a bad day to cross," said {friend}. "I cannot get home."
<think>
"There is a fallen tree," said {hero}. "[Alone I cannot move it|It is too heavy for one]. But we are
  two!"

+ They pushed and pulled until the log lay across the {stream}.
- "One, two, three!" they called, and at last the log lay over the water.
+ {Hero} went first, with the {color} basket on {his} back. {Friend} came after {him}.
- Slowly and carefully, they walked across, and {friend} held the {color} basket.
+ When they came to {elder}, {e_he} had been waiting at the window.
- {Elder} was so glad to see them! {E_he} put three plates on the table.
"You built a bridge? Then you must be hungry," said {elder}, and {e_he} cut the {bring}.
+ The next day, {elder} and the others made the bridge strong again.
- After that, everyone used their log until there was a new bridge.
+ {Hero} learned that there is a way when friends help each other.
- And {hero} and {friend} were friends from that day on.
<end>
""",
    """
# market day
$sell = @snacks
$want = @treasures
{open}
{Hero} wanted to buy a {color} {want} for {his} {mom}, but {he} had no money.
+ "I can sell my {sell} at the market," {he} thought.
- "Sell some {sell} at the market," said {elder}, the {work}.
+ So <day>, {he} filled a basket with {sell} and went to the square.
- <day>, {he} carried a big basket of {sell} to town.

+ The market was full of noise. {Hero} called, "{Sell}!" but {his} voice was too small.
- {Hero} stood in a corner and waited, but nobody saw {him}.
+ Then a goat came and ate half of the {sell}.
- Then {he} stumbled, and half of the {sell} rolled into the mud.
<sad>
<friend_came>
"I can sing," said {friend}. "Let us sing about your {sell}!"
+ They sang a funny song, first softly and then loudly.
- And they made up a song, "{Sell}, {sell}, sweet and fine!"

+ People stopped and laughed and bought. Soon the basket was empty.
- One by one, the people came, and soon there was nothing left.
{Hero} counted the coins. It was just enough for the {color} {want}!
+ {He} gave {friend} the last of the {sell}, which {he} had kept for {f_him}.
- "The rest is for you," said {hero}, and gave {friend} two coins.
+ At home, {he} put the {color} {want} in {his} {mom}'s {hands}. {M_he} was so happy!
- {His} {mom} held the {color} {want} for a long time. "For me?" {m_he} asked softly.
"[I had help|I sang for it]," said {hero}, and [told {m_him} everything|sang the song once more].
+ {Hero} learned that work is lighter with a song.
- From then on, {hero} and {friend} sang at the market every week.
<end>
""",
    """
# egg that hatches
$spot = under a bush | in the tall grass | beside the path | behind the barn | near the pond
$bird = duckling | chick | gosling | sparrow | baby owl
{open}
<likes>
<day>, {hero} found a {color} egg {spot}. It was all alone.
+ "Where is your mother?" {he} asked. But there was no nest and no bird.
- {He} looked for a nest, but there was none.
+ {He} took the egg home in {his} two {hands}.
- {He} carried it home as carefully as {he} could.

+ "It must stay warm," said {his} {mom}.
- "An egg needs to be warm," said {elder}, the {work}.
+ First {hero} put it in a shoe, but the shoe was too cold.
- First {hero} wanted to sit on it, but {his} {mom} laughed and said, "You are too heavy!"
+ Then {he} put it near the stove, but that was too hot.
- Then {he} wrapped it in a leaf, but the leaf was too thin.
At last {he} made a nest out of a [soft|woolly|warm] scarf, and that was just right.
+ Night after night, {hero} watched. {Friend}, {f_who}, came to watch too.
- {His} friend {friend}, {f_who}, came every day. "Is it ready?" {f_he} asked each time.

Then, late one night, they heard something. Tick, tick, crack!
+ A small hole came, and then a bigger one, and out came a {bird}.
- The {color} egg opened, and a wet little {bird} looked at them.
"Peep!" said the {bird}, and it [looked right at {hero}|sat down on {hero}'s foot].
"[It thinks that you are its mother|It likes you]!" said {friend}.
They named it {petname}, and it followed them everywhere.
+ When {petname} was big, it flew away with the other birds. {Hero} waved for a long time.
- {Petname} grew bigger and stronger, and one day it spread its wings and flew.
+ "That is what wings are for," said {his} {mom} softly.
- {Hero} was a little sad, but {he} was proud too.
+ And every spring, {petname} came back to say hello.
- Sometimes, in the evening, a bird sat in front of the window and called, "Peep!"
""",
    """
# garden and a rabbit (child)
$plant = carrots | beans | cabbages | lettuces | peas
$fence, fail = fence; the rabbit dug a hole under it | net; the rabbit crept below it | wall of
  stones; the rabbit jumped over it | scarecrow; the rabbit sat down on its foot
{open}
{Hero} had a small garden, and in it {he} grew {plant}.
+ {He} watered them every day, and they grew big and green.
- {He} was very proud of them and looked at them every morning.
<friend_is>
+ But <day>, some of the {plant} were gone! There were little bites everywhere.
- But <day>, somebody had eaten a whole row of {plant}.
<sad>

+ That night {hero} hid behind a {color} bucket and waited. And who came? A little rabbit!
- {Hero} sat at the window and watched. Then {he} saw two long ears. It was a rabbit!
+ First {he} clapped and shouted, and the rabbit ran away. But the next night it was back.
- First {he} called, "Go away!" But the rabbit only looked at {him} and ate on.
+ Then {he} made a {fence}, but {fail}.
- "I will make a {fence}," said {hero}. But {fail}.
"Why does it come?" {hero} asked {his} {mom}. "[Maybe it is hungry|It may have little ones]," {m_he}
  said.

+ The next evening, {hero} followed the rabbit to the end of the field.
- So {hero} went after the rabbit, very quietly.
+ There, in a hole in the ground, were five tiny baby rabbits!
- And there {he} saw a nest with four baby rabbits in it.
"Oh!" {he} whispered. "[You are a mother|You have children]."
{Hero} had an idea. Together with {friend}, {he} made a new bed of {plant}.
+ {Friend} painted a sign, "For the rabbits."
- "This one is for the rabbits, and that one is for us," said {friend}.
+ And do you know what? The rabbit never came into the old garden again.
- From then on, there were enough {plant} for everyone.
+ {Hero} learned that it is better to share than to fight.
- And in the summer, nine rabbits danced in the moonlight.
<end>
""",
    """
# boat trip
$thing, fix = oar; used a flat board | sail; tied a blanket to the pole | rope; made a rope of grass
$boat = boat | raft | canoe
$snacks = @snacks
{open}
{Elder}, the old {work}, had a {color} {boat} and let {hero} use it.
+ <day>, {hero} and {his} friend {friend}, {f_who}, went out on the lake.
- <day>, {hero} asked {friend}, {f_who}, to come with {him} on the lake.
+ They had {snacks} in a bag and the sun in their faces.
- The water was blue, and they ate {snacks} and sang.
"This is the life!" said {friend}.

+ But then the wind came, and they lost the {thing}.
- Then, plop, the {thing} fell into the water and was gone.
+ The {color} {boat} turned around and around.
- The {boat} went farther and farther from the land.
<worried>
+ First they paddled with their {hands}, but that was too slow.
- First they called for help, but nobody could hear them.
+ Then {friend} tried to blow very hard. It was funny, but it did not help.
- Then {friend} began to cry, and {hero} held {f_him} tight.
"Let us stay calm and think," said {hero}. <think>

At last {he} {fix}.
+ "It works!" shouted {friend}. Slowly the {boat} began to move.
- It was not easy, but the {color} {boat} went the right way.
+ Little by little, the land came closer.
- "Left, right, left, right," they called, and never stopped.
+ {Elder} stood on the shore and waved. "I was so worried," {e_he} said. "You did well!"
- On the shore stood {elder} and {hero}'s {mom}, and they ran into the water to pull the {boat} in.
"I am sorry about the {thing}," said {hero}. "We will make you a new one."
+ And the next day, they did, and {friend} painted it.
- "You are here," said {elder}, "and that is all that matters."
+ They learned that a calm head is better than strong arms.
- {Hero} and {friend} were proud of what they had done together.
<end>
""",
    """
# afraid to sing on the stage
$art, acts = song; sing | poem; say a poem | dance; dance | trick; do a magic trick | tune; play
  a tune
{open}
<likes>
There was going to be a show in the square, and {hero} wanted to {acts} there.
+ {He} worked on {his} {art} every evening, until {he} knew it by heart.
- At home, in front of the mirror, {his} {art} was perfect.
+ But when the day came, {his} knees began to shake.
- But on the day of the show, {hero} felt butterflies in {his} tummy.

+ From behind the {color} curtain, {he} looked at all those faces. There were so many!
- {He} hid behind the {color} curtain and did not want to come out.
+ First {he} drank some water, but {his} mouth was still dry.
- First {he} counted to twenty, but {his} heart beat even faster.
+ Then {he} wanted to run home, but {his} feet would not move.
- Then {he} tried to smile, but {his} lips only trembled.
<friend_came>
"I am afraid that I will forget everything," {hero} whispered.
"Then look only at me," said {friend}. "[I will sit in the first row|I will wave to you]. Pretend
  that it is just the two of us."

The {color} curtain opened, and {hero} stepped into the light.
+ At first it was very quiet. Then {hero} saw {friend} in the first row and began.
- {He} looked for {friend}, found {f_him}, and took a deep breath.
+ In the middle {he} made a small mistake, but {friend} nodded, and {he} went on.
- With every moment, it became easier, and soon {he} forgot to be afraid.
When the {art} was over, [everybody clapped and cheered|the whole square clapped].
<glad>
<thanks>
+ "I made a mistake," {hero} told {his} {mom}. "I only saw how brave you were," said {his} {mom}.
- {His} {mom} stood up and clapped the longest of all.
+ {Hero} learned that one friendly face is enough.
- Next year, it was {hero} who sat in the first row for somebody else.
<end>
""",
    """
# lost lamb (child)
$young, sound = lamb; baa | calf; moo | foal; neigh | piglet; oink | goat; maa
$spot = in a deep ditch | between two rocks | in a thorny bush | behind a broken gate | in the mud
{open}
Not far away lived {elder}, a [kind|friendly|cheerful] old farmer.
{Elder} had a small farm with many animals, and {hero} often helped to feed them.
+ The youngest of them was a {p_color} {young} named {petname}.
- {Hero} liked the little {young} best. It was {p_color}, and its name was {petname}.
+ But <day>, the gate stood open, and {petname} was gone.
- But <day>, when {he} came with a bucket of milk, there was no {petname}.
"I forgot to close the gate!" said {hero}. "[What have I done?|It is all because of me.]"

+ {Elder} was not angry. "Everyone forgets something," {e_he} said. "Let us look for {petname}."
- "Do not cry," said {elder}. "We need your sharp eyes now."
+ They looked in the barn, but there were only hens.
- They asked the hens and the geese, but they only went on eating.
+ They walked through the corn and called, but nothing moved.
- They went down to the stream, but there were only ducks.
<notgiveup>
"Let us be very quiet," said {hero}, "and listen."
+ And there it was! "{Sound}!" It was very soft and far away.
- They stood still. "{Sound}!" said a tiny voice in the distance.

{Hero} ran toward the sound. {Petname} was stuck {spot}.
+ Gently, {he} pulled out one leg, and then the other, until the {young} was free.
- "Hold still, {petname}," {he} whispered, and little by little {he} got it out.
+ {Petname} was cold and tired, so {hero} carried it all the way back in {his} {color} coat.
- {He} wrapped the {young} in {his} {color} coat and carried it home.
{Hero} closed the gate and looked twice to see if it was really shut.
+ "You made a mistake, and you made it good again," said {elder}. "I am proud of you."
- "A good farmer can make mistakes," said {elder}, "but a good farmer never stops looking."
+ {Petname} drank all the milk and fell asleep in {hero}'s lap.
- "{Sound}," said {petname}, and it sounded like a thank you.
+ {Hero} never forgot the gate again.
- {Hero} learned that you can mend a mistake if you do not run away from it.
<end>
""",
    """
# fishing and the little fish
$catch = fish | crab | turtle | frog
$tool = net | bucket | basket | trap
{open}
Not far away was the harbor, and there {elder}, an old sailor, had {e_his} boat.
+ <day>, {e_he} gave {hero} an old {color} {tool}. "Today you may come with me," {e_he} said.
- <day>, {hero} asked, "May I go fishing with you?" And {elder} gave {him} a {color} {tool}.
+ "I will catch the biggest {catch} in the world!" said {hero}.
- {Hero} was so excited that {he} could hardly sit still.

+ They waited for an hour, but {he} caught only an old boot.
- First {he} caught a boot. Then {he} caught a bunch of wet grass.
+ "Nothing wants to come to me," {hero} sighed.
- "This is taking so long," said {hero}. "Patience," said {elder}, and looked at the clouds.
+ Then {he} leaned out too far and almost fell into the water. {Elder} held {him} by the collar.
- Then a seagull stole {his} sandwich, and {elder} laughed until {e_his} hat fell off.
At last, something moved in the {color} {tool}. It was a tiny {catch}!
+ "I did it!" cried {hero}. But the {catch} looked at {him} with round eyes.
- {Hero} jumped for joy. Then {he} looked at the {catch}. It was so small, and it was afraid.

{Hero} held it [very carefully|in both {hands}|for a moment] and thought.
+ "It is only a baby," {he} said. "I think that its mother is looking for it."
- "If I were that small," {he} said, "I would want to go home."
"It is your {catch}," said {elder}. "You must choose."
+ Carefully, {hero} put it back into the water. Splash! And away it went.
- So {hero} bent down and let it go. "Swim home, little one," {he} whispered.
+ {Elder} put a hand on {his} shoulder. "[You are a true sailor|That was well done]," {e_he} said.
- For a while, {elder} said nothing. Then {e_he} smiled. "You have a big heart," {e_he} said.
+ When they came back to the harbor, the {color} {tool} was empty, but {hero} was full of joy.
- They came home with empty {hands}. {His} {mom} had made soup, and it tasted better than ever.
+ {Hero} learned that letting go can feel better than keeping.
- And sometimes, when they were out on the water, a {catch} jumped up as if to say hello.
<end>
""",
)
