"""What the embedded teacher knows: plain facts on everyday topics."""

from __future__ import annotations

from dataclasses import dataclass

# name: things that belong to it: facts, one a sentence: advice, one a sentence
_KNOWN = """
honey bees: hive, honey, wax, nectar, pollen, swarm, queen, drone: Honey bees live in colonies with one queen. Workers gather nectar and pollen from flowers. Bees show each other the way by dancing. Honey keeps for years when it is sealed: Plant flowers that bloom late in the year. Keep a shallow dish of water near the hive. Move slowly when you open a hive. Leave enough honey for the winter
sourdough bread: flour, water, salt, starter, dough, crust, oven, crumb: Sourdough rises by wild yeast instead of bought yeast. A starter is flour and water that ferments. Lactic acid gives the bread its sour taste. A long rest makes the dough easier to shape: Feed the starter every day. Weigh the flour instead of guessing. Let the loaf cool before you cut it. Bake in a very hot oven
city bicycles: saddle, pedal, chain, brake, bell, wheel, basket, lamp: A bicycle chain carries force from the pedals to the rear wheel. Low gears make climbing easier. Tyres lose air slowly even when nobody rides. A lamp makes a rider visible at night: Pump the tyres once a month. Oil the chain after rain. Wear a helmet that fits. Lock the frame and not only the wheel
vegetable gardens: soil, seed, compost, rake, tomato, carrot, bean, fence: Compost returns nutrients to the soil. Beans store nitrogen in their roots. Carrots grow best in loose ground. Most vegetables need six hours of sun: Water the beds early in the morning. Change the place of each crop every year. Pull weeds while they are small. Write the sowing date on a label
steam trains: boiler, piston, whistle, coal, rail, carriage, tender, firebox: A steam engine burns coal to boil water. The steam pushes pistons that turn the wheels. The tender carries coal and water. Steam engines were replaced by diesel and electric ones: Stand behind the line on the platform. Buy the ticket before you board. Keep the window shut in a tunnel. Listen for the whistle
night skies: star, moon, planet, comet, telescope, meteor, orbit, eclipse: The moon shines by light of the sun. Planets move slowly against the stars. A meteor is a small stone that burns in the air. The polar star shows where north is: Wait half an hour until your eyes see well in the dark. Take a red lamp instead of a white one. Choose a night without a moon. Dress warmly
public libraries: book, shelf, catalogue, reader, card, desk, novel, fine: A library lends books without payment. The catalogue says on which shelf a book stands. Librarians help readers to find sources. Many libraries lend films and games too: Return books before the date on the slip. Speak quietly near the desks. Renew a loan if you need more time. Ask at the desk when you find nothing
chess clubs: king, rook, bishop, knight, pawn, board, clock, opening: A chess game starts with sixteen pieces a side. The king may never be left in check. A pawn that crosses the board becomes another piece. Players use a clock with two faces: Develop the knights and bishops early. Castle before you attack. Count the pieces before an exchange. Shake hands after the game
mountain rivers: spring, rapid, trout, bank, bridge, stone, delta, current: A river begins at a spring or a glacier. Fast water carries stones and sand. Trout need cold and clean water. Rivers grow wider on their way to the sea: Never cross a river in flood. Wear shoes with a firm grip. Look for a bridge before you wade. Camp well above the bank
family kitchens: pot, spoon, knife, stove, sink, cup, plate, apron: A sharp knife is safer than a blunt one. Salt lowers the freezing point of water. A lid makes water boil sooner. Cast iron keeps heat for long: Wash your hands before you cook. Turn the handles of pots inward. Dry the knives at once. Taste before you add salt
old lighthouses: lamp, lens, tower, keeper, stair, storm, ship, harbour: A lighthouse warns ships of rocks. Its lens bundles the light into a beam. Each lighthouse has a rhythm of flashes of its own. Most lighthouses work without a keeper today: Climb the stairs slowly. Hold your hat on the gallery. Bring a coat against the wind. Look for the lens at the top
home computers: keyboard, screen, mouse, memory, cable, password, folder, printer: A computer stores everything as ones and zeros. Memory forgets its content when the power goes. A processor follows simple orders very fast. A backup protects against a broken disk: Copy important work every week. Use a long password. Install updates soon. Rest your eyes every hour
spring weather: cloud, rain, wind, frost, thunder, rainbow, storm, mist: Warm air can hold more water than cold air. Rain falls when drops in a cloud become too heavy. Thunder is heard after lightning is seen. Wind blows from high to low pressure: Carry an umbrella in April. Protect young plants from frost. Leave open fields in a storm. Read the forecast in the morning
jazz bands: trumpet, piano, bass, drum, saxophone, solo, rhythm, singer: Jazz began in New Orleans. Players invent parts of the music while they play. The bass and the drums keep the time. A big band has more than ten players: Listen to the others before you play a solo. Practise with a slow beat. Tune before you begin. Learn the melody by heart
sea turtles: shell, beach, egg, nest, flipper, algae, reef, wave: Sea turtles breathe air. They lay their eggs in sand. The warmth of the sand decides the sex of the young. Plastic bags kill turtles that take them for food: Keep lights off near a nesting beach. Never touch a nest. Carry your rubbish home. Tell a ranger when you see tracks
school theatres: stage, actor, costume, script, curtain, role, rehearsal, applause: A prompter helps actors who forget a line. Rehearsals start months before the first night. Costumes tell the public who somebody is. The stage manager calls every change of light: Learn the lines early. Speak to the last row. Hang the costumes up after the play. Thank the helpers
mountain hikes: boot, path, summit, hut, rucksack, stick, valley, map: The air is thinner on a high summit. Weather changes quickly in the mountains. A hut offers food and a bed. Marks on stones show the path: Start early in the day. Drink before you are thirsty. Tell someone where you go. Turn back when a storm comes
fresh coffee: bean, mill, filter, cup, milk, foam, roast, aroma: Coffee beans are the seeds of a fruit. Roasting gives the beans their aroma. Caffeine keeps people awake for hours. Ground coffee loses its aroma quickly: Grind the beans just before use. Use water below boiling. Clean the mill every week. Warm the cup
winter birds: sparrow, robin, owl, feather, seed, nest, beak, crow: Many birds fly south in autumn. Feathers keep a bird warm. Owls hunt at night. Birds sing to defend their place: Clean the feeder often. Offer seeds instead of bread. Put water out in frost. Keep cats indoors at dawn
small museums: painting, guide, ticket, statue, label, hall, frame, visitor: A museum keeps objects for later generations. Labels tell what an object is. Light can fade old paintings. Most museums show a small part of what they own: Look at few things for long. Keep a step away from the paintings. Ask the guide. Leave large bags at the door
village markets: stall, cheese, apple, basket, flower, price, fish, bread: Markets sell what grows nearby. Prices fall towards closing time. Many markets are held on the same day each week. Sellers often let people taste: Bring a basket of your own. Come early for the best choice. Pay with coins. Ask where things were grown
electric cars: battery, motor, charger, cable, range, brake, plug, seat: An electric car has a battery instead of a tank. Braking gives energy back to the battery. Cold weather shortens the range. The motor has few moving parts: Charge at night. Heat the car while it is plugged in. Drive gently to go further. Plan stops on long trips
wild mushrooms: cap, stem, spore, forest, basket, moss, gill, knife: A mushroom is the fruit of a fungus. Fungi feed on dead wood and leaves. Some mushrooms are deadly. Spores spread with the wind: Eat only what an expert has seen. Cut the stem with a knife. Use a basket that lets air in. Leave old ones for the forest
football teams: goal, ball, keeper, coach, whistle, corner, pass, captain: A team has eleven players. A match lasts ninety minutes. Only the keeper may use the hands. A red card sends a player off: Warm up before the match. Pass to the free player. Drink in the break. Respect the referee
clean teeth: brush, paste, floss, dentist, gum, enamel, sugar, tongue: Sugar feeds the bacteria that harm teeth. Enamel is the hardest part of the body. Children lose their milk teeth. Floss reaches where a brush cannot: Brush twice a day. Change the brush every three months. See a dentist once a year. Drink water after sweets
paper books: page, cover, author, chapter, print, spine, title, ink: Paper is made from wood. Printing with movable letters made books cheap. A spine holds the pages together. Acid makes old paper yellow: Keep books away from damp walls. Use a marker instead of folding pages. Dry your hands before you read. Lend books to friends
busy harbours: crane, ship, rope, anchor, container, dock, tide, pilot: Cranes lift containers off ships. A pilot knows the shallow places. The tide lifts ships twice a day. An anchor holds a ship in place: Keep clear of hanging loads. Wear a vest near the water. Watch the ropes. Learn the signals
rain forests: tree, liana, parrot, frog, river, moss, monkey, orchid: Rain forests hold more than half of all kinds of animals. Little light reaches the ground. The trees give water back to the air. Many medicines come from forest plants: Buy wood with a seal. Stay on the path. Take a guide. Wear long sleeves
hot springs: steam, pool, mineral, mud, towel, geyser, bath, sulphur: Hot springs are heated by rock deep below. Minerals colour the water. A geyser throws water into the air. Some bacteria live in very hot water: Test the water with one foot. Drink enough. Leave the pool after a quarter of an hour. Rinse off the minerals
wooden toys: block, train, doll, puzzle, paint, glue, wheel, puppet: Wood lasts longer than most plastic. Blocks teach children about balance. Old toys were carved by hand. Paint for toys must be safe to lick: Sand the edges smooth. Choose paint without poison. Keep small parts from babies. Mend instead of throwing away
post offices: letter, stamp, parcel, address, counter, envelope, scale, courier: A stamp shows that the sender paid. A postcode makes sorting faster. Parcels are priced by weight. The first stamps were printed in Britain: Write the address in clear letters. Pack glass in paper. Weigh the parcel at home. Keep the receipt
school chemistry: acid, base, flask, salt, burner, gas, crystal, filter: An acid turns blue litmus red. Water is made of hydrogen and oxygen. Salt dissolves in water. A catalyst speeds a reaction up: Wear glasses in the laboratory. Add acid to water and never the other way. Label each flask. Wash your hands afterwards
deserts: dune, camel, oasis, cactus, sand, scorpion, well, heat: A desert gets very little rain. Nights in a desert can be cold. Camels store fat in their humps. A cactus keeps water in its stem: Travel in the morning. Carry more water than you think. Cover your head. Shake your shoes before you wear them
street music: guitar, violin, hat, song, crowd, drum, voice, corner: Street musicians play for coins. Many cities ask them for a permit. A good place has many people and little noise. Some famous singers began in the street: Smile at those who listen. Change the place after an hour. Keep the songs short. Thank people for coins
knitted clothes: wool, needle, yarn, scarf, stitch, sock, pattern, button: Knitting makes cloth from one long thread. Wool keeps warm even when it is wet. Thick needles make loose stitches. A pattern tells which stitch comes next: Wash wool in cold water. Count the stitches in each row. Dry pullovers lying flat. Keep moths away with lavender
hospital wards: nurse, doctor, bed, bandage, fever, medicine, visitor, chart: Nurses work day and night. Clean hands prevent many infections. A chart shows the fever of a patient. Patients heal faster when they sleep well: Wash your hands at the door. Keep visits short. Speak softly. Ask before you bring flowers
"""  # noqa: E501


@dataclass(frozen=True)
class Topic:
    """A topic with what belongs to it: single words, facts and advice, both in sentences without their full stop."""

    name: str
    things: tuple[str, ...]
    facts: tuple[str, ...]
    advice: tuple[str, ...]


def _topics() -> dict[str, Topic]:
    found = {}
    for line in _KNOWN.strip().splitlines():
        name, things, facts, advice = line.split(": ")
        found[name] = Topic(name, tuple(things.split(", ")), tuple(facts.split(". ")), tuple(advice.split(". ")))
    return found


TOPICS = _topics()
NAMES = tuple(TOPICS)

GOOD = "wonderful lovely friendly helpful delicious bright cheerful charming excellent perfect".split()
BAD = "terrible awful rude broken dirty boring dreadful noisy disappointing stale".split()
SUBJECTS = (
    "The hotel near the station", "Our waiter", "The soup of the day", "This umbrella", "The new tram line",
    "My cousin's bakery", "The concert last night", "That long novel", "The swimming pool", "The parcel service",
    "Her garden party", "The evening class", "This pair of boots", "The ferry crossing",
)  # fmt: skip
PEOPLE = "Amira Bruno Chiara Deniz Elif Fabio Greta Hamid Ingrid Jonas Katya Lorenzo Mei Nadia Olu Pavel".split()
PLACES = "Lisbon Oslo Accra Lima Kyoto Tampere Cork Graz Tunis Quito Basel Ghent".split()
AUDIENCES = (
    "a class of nine-year-olds", "a retired sea captain", "newcomers to the town", "busy parents",
    "apprentices in their first week", "a choir on tour", "night-shift nurses", "my grandmother's bridge club",
    "tourists who have one day", "students before an exam", "a jury of gardeners", "beginners of all ages",
    "neighbours who just moved in", "a radio audience", "volunteers at the fair", "a sceptical uncle",
)  # fmt: skip
WORDS = (
    "harvest", "lantern", "puzzle", "velvet", "orbit", "meadow", "copper", "thunder", "ribbon", "walnut", "compass",
    "marble", "feather", "canyon", "saffron", "whisper", "granite", "juniper", "beacon", "cobalt", "ember", "quartz",
)  # fmt: skip
