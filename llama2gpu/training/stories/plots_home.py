"""Plots at home: lost and broken things, the dark, baking, bedtime and new skills."""

PLOTS = (
    """
# lost thing
$thing = @toys
$spot = @hiding
{open}
<likes>
{He} had a {color} {thing} that {he} [took everywhere|loved more than anything|never left behind].
+ <day>, the {color} {thing} was gone!
- But <day>, {hero} looked for the {thing}, and it was not there.
<worried>

+ {He} looked <searched>, but there was only dust.
- First {he} looked <searched>, but it was not there.
+ Then {he} looked <searched>. There was only an old sock.
- Next {he} looked <searched>, but all {he} found was a [spoon|button|crumb].
+ "Have you seen my {thing}?" {he} asked {his} {mom}.
- {Hero} told {his} {mom} about the {thing}.
"Think about where you were when you last had it," {m_he} said.
<friend_came>
"I will help you look," said {friend}. "Four eyes see more than two."

+ They walked back, step by step, to every place where {hero} had played.
- They went slowly from room to room and looked high and low.
+ "Look!" cried {friend}. Something {color} was {spot}.
- Suddenly {hero} saw something {color} {spot}.
+ It was the {thing}! {Hero} picked it up and held it tight.
- There lay the {color} {thing}, just where {hero} had left it.
<thanks>
+ From that day on, {hero} always put the {thing} back in its place.
- After that, {hero} put the {color} {thing} on a shelf every night.
- {Hero} learned that two friends can find what one cannot.
<end>
""",
    """
# broken toy
$thing, part, fix = toy train; wheel; a small nail | doll; arm; needle and thread | toy boat; sail;
  a piece of cloth | kite; tail; a long ribbon | toy horse; leg; a little glue | wagon; wheel; a new
  screw | teddy bear; ear; needle and thread | robot; arm; a tiny screw | puppet; string; a new
  string
{open}
{His} favorite toy was a {color} {thing}. {His} {mom} had given it to {him}.
+ {He} played with it every day, in the sun and in the rain.
- {He} even slept with the {thing} next to {his} pillow.
+ But <day>, {he} played too wildly, and the {part} of the {thing} came off.
- But <day>, {he} tripped and fell, and the {part} of the {thing} broke.

<sad>
+ First {he} tried to fix it with [tape|string|mud], but it did not hold.
- First {he} pushed the {part} back on, but it fell off again.
<notgiveup>
+ Next {he} asked {friend}, a {f_kind} who lived nearby, but {friend} did not know what to do.
- {His} friend {friend} said, "Just get a new one." But {hero} did not want a new one.
+ "Why not ask {elder}?" said {his} {mom}. "{E_he} is a {work} and can fix many things."
- Then {he} thought of {elder}, the {work}, who was good at fixing things.

+ {Hero} carried the {color} {thing} to {elder}.
- So {hero} went to see {elder} with the {thing} in a bag.
"[Let me see|Hmm]," said {elder}. "[We need|All it needs is] {fix}. [You can help me|Will you help
  me]?"
+ {Hero} held the {part} while {elder} worked slowly and carefully.
- {Elder} showed {him} how to do it, and {hero} did the last part all by {himself}.
"There! It is as good as new," said {elder}.
<glad>
+ "Thank you," {he} said. "Next time I will be more careful."
- To say thank you, {hero} drew a picture of the {color} {thing} for {elder}.
+ {Hero} learned that a broken thing can often be fixed.
- And {hero} loved {his} old {thing} even more than before.
<end>
""",
    """
# afraid of the dark
$thing, sound = branch; tapping on the window | clock; ticking in the hall | mouse; looking for
  crumbs | door; moving in the wind | shutter; knocking on the wall | tap; dripping in the sink
$light = lantern | candle | lamp | little light
{open}
<likes>
By day {hero} was not afraid of anything. But at night {he} was afraid of the dark.
+ {One} night, {he} heard a strange noise. Tick, tack, tap!
- {One} night, {he} woke up and heard something. Tap, tap, tap!
<worried>

+ {He} pulled the {color} blanket over {his} head, but {he} could still hear it.
- {He} hid under {his} {color} blanket and counted to ten, but the noise was still there.
+ Then {he} sang a quiet song, but {his} voice was shaking.
- Then {he} held {his} pillow tight, but that did not help either.
At last {he} called {his} {mom}.
+ "I think there is a monster," {he} whispered.
- "There is something out there," {he} said.
"Let us go and see together," said {his} {mom}. {M_he} took a {light}, and they went to look.

+ Step by step, they came closer to the noise. And what did they see?
- {Hero} held {m_his} {hands} tightly. They looked around the corner.
It was only a {thing} {sound}!
+ {Hero} began to laugh. "Is that all?" {he} asked.
- "Oh! You are not a monster at all," {hero} said to the {thing}.
"The dark is only the day with its eyes closed," said {his} {mom}.
+ Then they looked out of the window. The night was full of stars.
- {M_he} opened the curtain, and the moon shone softly on the {color} blanket.
+ "The night is beautiful," said {hero}.
- "I think I like the night a little now," said {hero}.
{He} went back to bed and [soon fell asleep|slept until morning].
+ After that, when {he} heard a noise at night, {he} smiled and thought of the {thing}.
- {Hero} learned that many scary things are small when you look at them.
""",
    """
# baking gone wrong
$cake = @treats
$wrong, taste = salt; salty | pepper; hot | mustard; sour | vinegar; sour
{open}
<likes>
+ Tomorrow was the birthday of {his} {mom}, and {hero} wanted to bake a {cake}.
- "I will bake a {cake} for {Mom}'s birthday," {hero} thought. "It will be a surprise."
{He} asked {his} friend {friend}, {f_who}, to help {him}.

+ They put flour, eggs and milk in a big {color} bowl.
- {Hero} broke the eggs, and {friend} [poured|added] the milk into a {color} bowl.
+ Soon there was flour on the table, on the floor and on their noses.
- Puff! The flour went up like a cloud, and they both had to sneeze.
"Now the sugar," said {hero}. But {he} took the wrong jar. It was {wrong}!
+ When the {cake} was done, they each tried a little piece.
- The {cake} looked lovely. They both took a bite.
"Ugh!" cried {friend}. "It is so {taste}!"
<sad>

<notgiveup>
+ They baked a second {cake}, but they forgot it in the oven, and it came out black.
- They made a new one, but it fell on the floor.
"[One more time|We can do it]," said {friend}, "and this time we will be careful."
+ They read every word in the book, and they tried the sugar first.
- {Hero} tasted everything first, and {friend} watched the clock.
+ And the third {cake} was golden and sweet.
- And this time, the {cake} was just right.
"Happy birthday!" they called. {His} {mom} was so surprised!
"This is the best {cake} I have ever had," {m_he} said.
+ {Hero} and {friend} looked at each other and [laughed|smiled].
- "You should have tried the first one," said {hero}, and everyone laughed.
+ {Hero} learned that you can always try again.
- They washed the {color} bowl together, and it was the best birthday of all.
""",
    """
# missing key
$box = box | chest | cupboard | case | trunk
$inside = an old photo book | a music box | a bag of marbles | a picture of {his} family | a small
  telescope | a book of fairy tales | a set of paints
$spot = @hiding
{open}
In the house stood an old {color} {box} that was always locked.
"What is inside?" {hero} often asked. "I lost the key long ago," said {his} {mom}.
+ <day>, {hero} made up {his} mind to find the key.
- <day>, {hero} said, "Today I will find the key!"

+ {He} looked <searched>, but found only a [pin|coin|button].
- First {he} looked <searched>, but there was no key.
+ Then {he} tried to open the {box} with a [fork|stick|hair pin], but it stayed shut.
- Then {he} shook the {box}. Something inside went bump, but it did not open.
<friend_came>
"I am looking for a key," {hero} told {friend}. "Will you help me?"
"I love to look for things," said {friend}.
+ They turned the whole house upside down.
- They looked high and low, in every corner.

+ At last {friend} saw something shiny {spot}.
- Then {hero} looked {spot}. Something was shining there.
"The key!" they both cried.
+ {Hero} put it into the lock and turned it. Click! The {color} {box} opened.
- It was old and full of dust, but it turned. Click went the lock of the {color} {box}.
Inside was {inside}.
+ {His} {mom} had tears in {m_his} eyes. "I had this when I was as small as you," {m_he} said.
- "Oh!" said {his} {mom}. "I thought that it was lost forever."
+ They sat down together, and {m_he} told them stories about it until evening.
- "Come, I will show you," {m_he} said, and they all sat close together.
+ {Hero} thought that this was better than gold.
- "Thank you for not giving up," {his} {mom} said to {hero} and {friend}.
<end>
""",
    """
# new bike or skill
$thing, doing = bike; ride a bike | pair of skates; skate | scooter; ride a scooter | flute; play
  the flute | jump rope; jump rope | paintbrush; paint | fiddle; play the fiddle
{open}
For {his} birthday, {hero} got a {color} {thing}.
+ <glad>
- It was just what {he} had wished for.
+ But {he} did not know how to {doing}.
- {He} wanted to {doing} like the big ones did.

+ On the first day, {he} tried and tried, but it did not go well.
- The first time {he} tried, everything went wrong.
+ "Ha, ha!" laughed {friend}, the {f_kind} next door. "That looks funny!"
- {Friend}, a {f_kind} who lived nearby, saw it and laughed.
<sad>
+ "I will never learn it," {he} told {his} {mom}, and put the {color} {thing} in a corner.
- {He} pushed the {color} {thing} under the bed. "I do not want it anymore," {he} said.
"I could not do it at first either," said {his} {mom}. "[Try a little every day|Nobody can do it on
  the first day]."

+ So {hero} got up early every morning and tried again.
- So {hero} tried a little each day, before breakfast and after supper.
+ On Monday it went badly. On Tuesday it went better.
- Day by day, it went a little better.
- {His} {mom} stood by and said, "Slowly, slowly. That is right!"
And at the end of the [week|month], {he} could {doing}!
+ <glad>
- "Look at me!" {he} called.
{Friend} [was amazed|opened {f_his} eyes wide]. "I am sorry that I laughed," {f_he} said. "Can you
  show me how to do it?"
"Of course," said {hero}, and gave {f_him} the {color} {thing}. "[Just do not give up|Go slowly]."
+ {Hero} learned that small steps take you far.
- And soon they could both {doing}.
<end>
""",
    """
# the tidy room
$thing = @treasures
$other = ball | book | hat | shoe | blanket
{open}
<likes>
But {hero} did not like to clean up. {His} room was full of things.
+ There were socks on the lamp and blocks on the bed.
- There were shoes on the table and crumbs on the floor.
"Please clean your room," said {his} {mom}. "[Later|Tomorrow|Not now]," said {hero}.

<day>, {friend} came to the door. {Friend} was a {f_kind} and {his} best friend.
"Come, we are all going on a picnic!" {friend} said. "[Bring|Do not forget] your {color} {thing}!"
+ {Hero} ran to {his} room, but where was the {color} {thing}?
- {Hero} looked for the {color} {thing}, but {he} could not find it in all that mess.
+ {He} pulled on a {other}, and a whole pile fell on {his} head.
- {He} stepped on a block and cried, "Ouch!"
+ {He} looked <searched>, but it was not there.
- {He} threw everything from one side to the other, but that only made it worse.
<sad>

"I can help you," said {friend}. "Let us put every thing in its place."
+ They put the books on the shelf and the toys in the box.
- {Friend} picked up the toys, and {hero} put away the clothes.
+ And under the very last {other} lay the {color} {thing}!
- And when the floor was clean, there lay the {color} {thing}.
<thanks>
+ They ran to the picnic and came just in time for the cake.
- They were a little late for the picnic, but the others had kept some cake for them.
+ From then on, {hero} cleaned {his} room every evening.
- When {he} came home, {his} {mom} looked into the room and could not believe {m_his} eyes.
+ {Hero} learned that a little work today saves much work tomorrow.
- "Now I can find everything," {hero} said proudly.
<end>
""",
)
