"""Word lists: who the stories are about, where they happen and what is in them."""


def listed(text: str, separator: str | None = None) -> list[str]:
    """The items of a text, with line ends inside an item made spaces."""
    return [" ".join(item.split()) for item in text.split(separator)]


PRONOUNS = ("he", "him", "his", "himself")

BOYS = listed("""
Adam Ben Bobby Carl Charlie Dan Eddie Eli Felix Finn Frank George Gus Harry Henry Hugo Ian Jack
Jake James Joe John Kevin Leo Liam Luke Max Mike Nate Ned Noah Oliver Oscar Owen Paul Peter Ray
Rob Sam Simon Ted Theo Tim Tom Toby Zack
""")
GIRLS = listed("""
Alice Amy Anna Bella Beth Carla Clara Daisy Dora Ella Emily Emma Eva Fiona Flora Grace Hannah Hazel
Holly Ivy Jane Jenny Jill Julia Kate Kim Lily Lisa Lola Lucy Mary Maya Mia Molly Nina Nora Olive
Penny Rose Ruby Ruth Sally Sara Sophie Sue Tina Wendy Zoe
""")
CHILD_NAMES = (BOYS, GIRLS)

ANIMALS = listed("""
rabbit mouse bear fox squirrel hedgehog badger otter beaver raccoon mole panda
""")
ANIMAL_NAMES = (
    listed(
        "Bramble Barney Chip Digger Dusty Fuzzy Hoppy Jumper Nibbles Oakley Pip Rusty Scout Tuck "
        "Tumble Whiskers Wiggles Ziggy"
    ),
    listed(
        "Acorn Bonnie Clover Dolly Fern Ginger Honey Iris Juniper Lulu Maple Nutmeg Peach Poppy "
        "Rosie Tansy Violet Willow"
    ),
)

PETS = listed("puppy kitten dog cat")
PET_NAMES = listed("""
Biscuit Bubbles Button Captain Cocoa Cookie Domino Fluffy Freckles Mittens Muffin Patches Peanut
Pebble Pepper Pickle Pumpkin Shadow Snowy Socks Spot Sunny Teddy Tiger Waffles
""")

SURNAMES = listed("""
Baker Bell Berry Brook Brown Carter Cook Field Fisher Gray Green Hill King Lake Miller Moss Page
Potter Reed Stone Turner Walker White Wood
""")

PARENTS = listed("mom mom mom dad dad dad grandma grandma grandpa grandpa aunt uncle")
FEMALE_PARENTS = {"mom", "grandma", "aunt"}

COLORS = listed("red blue green yellow orange purple pink white brown silver golden black gray")
FRIENDS = listed(
    """
a {f_kind} from next door; a {f_kind} who lived nearby; the {f_kind} from across the road; a
{f_kind} of the same age; a cheerful {f_kind};
a {f_kind} with bright eyes; a {f_kind} who liked to laugh
""",
    ";",
)
FUR = listed("brown white black gray golden")
WORK = listed("baker farmer gardener teacher painter tailor clockmaker carpenter shoemaker potter")
TRAITS = listed("""
kind brave curious cheerful gentle clever sweet friendly careful helpful playful patient polite
""")
HOBBIES = listed(
    """
to sing; to draw pictures; to dance; to read books; to play outside; to run and jump; to climb
trees; to help in the kitchen; to look at the clouds; to collect smooth stones; to pick flowers; to
ask questions; to tell funny jokes; to build tall towers; to watch the birds; to splash in puddles;
to hum little songs; to make up stories; to play hide and seek; to count the stars; to paint; to
roll down hills; to play with blocks; to listen to the rain
""",
    ";",
)

HOMES = listed(
    """
little white house; small red house; tall blue house; cozy cottage; little wooden house; yellow
house; stone cottage; old brick house; tiny green house; house with a red roof; house with a blue
door; house with a big garden; warm little cabin; pretty pink house
""",
    ";",
)
NEAR = listed(
    """
near the sea; by the river; at the edge of the forest; on a green hill; next to a big farm; at the
end of a long street; in the middle of town; near a quiet lake; in a small village; beside an apple
orchard; at the foot of a mountain; near the old mill; across from the park; by a narrow bridge
""",
    ";",
)
DENS = listed(
    "cozy den; snug little home; warm home; tiny house; round little house; tidy home", ";"
)
DEN_PLACES = listed(
    """
under an old oak tree; at the edge of the forest; by the river; in a sunny meadow; on a mossy hill;
beside a quiet pond; deep in the green woods; behind a big gray rock; near a field of clover; under
the roots of a tall pine; by a little stream; in a warm valley
""",
    ";",
)

PLACES = listed(
    """
the park; in the park, the garden; in the garden, the forest; in the forest, the beach; at the
beach, the meadow; in the meadow, the playground; at the playground, the river; by the river, the
lake; at the lake, the hill; on the hill, the field; in the field, the orchard; in the orchard, the
old barn; in the old barn, the pond; by the pond, the bridge; by the bridge, the square; in the
square, the farm; at the farm, the library; at the library, the mill; at the mill, the stream; by
the stream, the valley; in the valley, the woods; in the woods, the duck pond; at the duck pond
""",
    ",",
)
HIDING = listed(
    """
under the bed; behind the sofa; inside an old boot; in the toy box; under a pile of leaves; behind
the flower pots; in the laundry basket; under the kitchen table; on the window sill; in the tall
grass; under the stairs; behind the curtain; next to the wood pile; inside a coat pocket; in the
cookie jar; under the porch; behind the big clock; in the wheelbarrow; under a pillow; between two
books; behind the door; in a watering can
""",
    ";",
)
TOYS = listed(
    """
ball; doll; toy train; teddy bear; toy boat; kite; drum; top; puppet; toy car; robot; wagon;
whistle; toy truck; jump rope; music box; yo-yo; toy plane; hoop; toy horse; rag doll; toy rabbit;
marble
""",
    ";",
)
TREASURES = listed(
    """
scarf; hat; umbrella; button; backpack; cup; ribbon; notebook; feather; shell; lantern; basket;
blanket; mitten; book; coat; flute; bell; pencil; coin; ring; bracelet; apron; pillow; key ring;
paintbrush; envelope; ornament; flag; pocket watch
""",
    ";",
)
SNACKS = listed(
    """
cookies; muffins; apples; sandwiches; pancakes; plums; nuts; crackers; buns; pears; berries; grapes;
cherries; rolls; carrots
""",
    ";",
)
TREATS = listed(
    """
apple pie; carrot cake; lemon cake; berry pie; honey cake; plum cake; banana cake; chocolate cake;
cherry pie; cinnamon cake; pear tart; nut cake
""",
    ";",
)
FLOWERS = listed("sunflower; rose; tulip; marigold; bluebell; buttercup; snowdrop", ";")
SOFT = listed("soft warm tiny round smooth shiny pretty little special lovely")
