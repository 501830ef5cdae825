"""Other wordings of the problems, as the embedded teacher says them.

Blocks of three lines: a piece of a question as `problems` words it, and two other ways to say it. Other wordings are
whole: one way is taken for all pieces of a question, and each can be turned back.
"""

from __future__ import annotations

_BLOCKS = """
A coin is {side} up.
Someone puts a coin down with {side} showing.
On a desk there is a coin with {side} on top.

A coin lies on the table, {side} up.
Somebody has laid a coin here, {side} visible.
You find a coin whose upper face is {side}.

The coin starts {side} up.
At first a coin shows {side}.
In the beginning {side} can be seen on a coin.

Then {name} does not flip it.
{name} comes next and leaves it alone.
After that {name} passes by without touching it.

Then {name} flips it.
{name} comes next and flips it.
After that it is flipped by {name}.

{name} does not flip the coin.
{name} leaves the coin as it is.
No flip is made by {name}.

{name} flips the coin.
The coin is flipped by {name}.
A flip is made by {name}.

{name} does not turn it over.
{name} lets it lie.
The coin stays untouched by {name}.

{name} turns it over.
{name} gives it a turn.
The coin gets turned by {name}.

Is the coin still {side} up?
Does it show {side} in the end?
When all is done, can {side} be seen?

Is it {side} up now?
Which is to say: does {side} face up now?
By now, is {side} on top?

At the end, is the coin {side} up?
Once everybody was there, does {side} show?
Finally, would you see {side}?

Take the last letters of the words in "{quoted}" and concatenate them.
Read "{quoted}", note how each word ends, and write these letters without blanks.
Which text do you get by stringing together the final letters of the words "{quoted}"?

What do you get when you join the last letter of each word in "{quoted}"?
Connect the final letters of all words in "{quoted}"; which text is it?
Look at "{quoted}": write down the letter at the end of each word, in one piece.

Put together the last letters of "{quoted}".
Every word of "{quoted}" has a final letter; combine them.
Chain the closing letters of the words "{quoted}" together.

{x}, {y} and {z} each hold a ball: {x} has a {one}, {y} has a {two} and {z} has a {three}. They play a game.
A game starts in which {x} holds a {one}, {y} a {two}, and {z} a {three}.
Before a game, a {one} belongs to {x}, a {two} to {y}, and a {three} to {z}.

{x}, {y} and {z} bring presents to a party: {x} has a {one}, {y} has a {two} and {z} has a {three}.
To a party {x} carries a {one}, {y} a {two}, and {z} a {three}.
There is a party, where a {one} comes from {x}, a {two} from {y}, and a {three} from {z}.

{x}, {y} and {z} play in one team: {x} is playing {one}, {y} is playing {two} and {z} is playing {three}.
In a team, the position of {x} is {one}, that of {y} {two}, and that of {z} {three}.
A coach lets {x} play as {one}, {y} as {two}, and {z} as {three}.

{x}, {y} and {z} each buy a book: {x} gets {one}, {y} gets {two} and {z} gets {three}.
In a shop {x} pays for {one}, {y} for {two}, and {z} for {three}.
At an auction, books are sold: {one} to {x}, {two} to {y}, and {three} to {z}.

{x}, {y} and {z} go to a dance: {x} is dancing with {one}, {y} is dancing with {two} and {z} is dancing with {three}.
At a dance {x} has chosen {one}, {y} has chosen {two}, and {z} has chosen {three}.
The couples of a dance are {x} with {one}, {y} with {two}, and {z} with {three}.

{x} and {y} swap balls.
{x} exchanges balls with {y}.
there is an exchange of balls between {x} and {y}.

{x} and {y} swap presents.
{x} exchanges presents with {y}.
there is an exchange of presents between {x} and {y}.

{x} and {y} trade positions.
{x} exchanges positions with {y}.
there is an exchange of positions between {x} and {y}.

{x} and {y} trade books.
{x} exchanges books with {y}.
there is an exchange of books between {x} and {y}.

{x} and {y} switch partners.
{x} exchanges partners with {y}.
there is an exchange of partners between {x} and {y}.

At the end of the game, {x} has the
When the game is over, {x} holds the
After the game, in the hands of {x} is the

At the end of the party, {x} has the
When the party is over, {x} holds the
After the party, {x} goes home with the

At the end of the match, {x} is playing
When the match is over, the position of {x} is
After the match, {x} stands as

At the end of the year, {x} has
When the year is over, {x} owns
After a year, on the shelf of {x} stands

At the end of the dance, {x} is dancing with
When the dance is over, the partner of {x} is
After the dance, {x} leaves with

Which choice is true? Answer Choices:
___. Which of these is right? Answer Choices:
___. Select what fits. Answer Choices:

{name} has {a} {item}. {name} finds {b} more and then gives away {c}. How many {item} are left?
After finding {b} {item} in addition to {a}, {name} hands {c} of them to others. How many {item} stay behind?
Count the {item} of {name}, who owned {a}, discovered {b} others, and passed {c} on.

{name} had {a} {item}, lost {b} of them, and then bought {c} new ones. How many {item} does {name} have now?
Of {a} {item} that belonged to {name}, {b} went missing, and {c} were bought to replace them. What is the count of {item} today?
How many {item} are in the possession of {name}, given that there were {a}, that {b} got lost and that {c} were purchased?

{name} buys {a} boxes with {b} {item} in each and already owns {c}. How many {item} does {name} have in all?
Each of {a} boxes bought by {name} contains {b} {item}; another {c} were there before. What is the total of {item}?
With {c} {item} at home, {name} purchases {a} boxes of {b}. To how many {item} does that add up?

There are {a} bags with {b} {item} each. {name} takes out {c} {item}. How many {item} remain in the bags?
Somebody filled {a} bags, {b} {item} to a bag, and {name} removes {c} {item}. What is still inside, in {item}?
How many {item} do the bags hold after {name} took {c} {item} away, if {a} bags had {b} apiece?

{name} has {a} {item} and gets {b} more. They are shared out evenly among {c} friends. How many {item} does each get?
Besides {a} {item}, {name} receives {b}, and divides all of them fairly between {c} friends. What is the share of a friend in {item}?
How many {item} go to each of {c} friends when {name}, owner of {a} {item}, is given {b} and deals all out equally?

{name} picks {a} {item}, but {b} are broken. The good ones are packed in boxes of {c}. How many boxes are filled?
From {a} {item} gathered by {name}, {b} damaged ones are thrown away, and every {c} of the rest of the {item} fill a box. What number of boxes is that?
How many boxes can {name} fill with {c} {item} apiece, having gathered {a} {item} of which {b} are damaged?

A shop sells {a} {item} on Monday, {b} on Tuesday and {c} on Wednesday. How many {item} does it sell in the three days?
On Monday {a} {item} leave a shop, on Tuesday {b}, on Wednesday {c}. What do the three days come to, in {item}?
What is the number of {item} sold over three days in a shop with sales of {a} (Monday), {b} (Tuesday) and {c} (Wednesday)?

{name} has {a} {item}. A friend has {b} times as many. How many {item} do they have together?
Compared with {name}, who owns {a} {item}, a friend owns {b} times that number. What do both own together in {item}?
How many {item} belong to {name} and a friend jointly, the friend having {b} times the {a} that {name} has?

{name} earns {a} coins an hour and works {b} hours on Monday and {c} hours on Friday. How many coins does {name} earn?
For an hour of work {name} is paid {a} coins. What are the wages in coins for {b} hours on Monday plus {c} hours on Friday?
How many coins are paid to {name} for Monday ({b} hours) and Friday ({c} hours), at {a} coins per hour?

{name} has {a} {item}, finds {b} more, gives away {c}, and then buys {d}. How many {item} does {name} have at the end?
Starting from {a} {item}, {name} comes upon {b}, parts with {c}, and acquires {d}. What is the final number of {item}?
How many {item} does {name} finally own, after {a} at the start, {b} found, {c} given to others and {d} bought?

{name} buys {a} packs of {b} {item} and {c} single ones, then uses up {d}. How many {item} are left?
In {a} packs, each with {b} {item}, and as {c} loose pieces {name} brings {item} home; {d} are consumed. What remains?
How many {item} does {name} still have, once {d} are used, out of {c} loose ones and {a} packs that held {b} apiece?

{name} collects {a} {item} on each of {b} days, loses {c}, and shares the rest evenly with {d} people in all. How many {item} does each get?
For {b} days {name} gathers {a} {item} daily; {c} disappear, and what remains is divided fairly by {d} persons. What is a share, in {item}?
How many {item} will each of {d} persons receive if {name} gathers {a} {item} daily during {b} days and misplaces {c} before dividing fairly?

A box holds {a} red and {b} blue {item}. {name} has {c} such boxes and sells {d} {item}. How many {item} does {name} keep?
In each of {c} boxes of {name} lie {a} red and {b} blue {item}. What number stays with the owner when {d} {item} are sold?
How many {item} stay with {name}, who sells {d} {item} out of {c} boxes, every one with {a} red and {b} blue pieces?

Set a timer for {minutes} minutes.
I need a countdown that lasts {minutes} minutes.
Let me know when {minutes} minutes have passed.

Start a {minutes} minute timer.
Count down from {minutes} minutes, beginning at once.
A timer, {minutes} minutes long, would help.

Wake me in {minutes} minutes.
My nap should last {minutes} minutes, then ring.
Ring as soon as {minutes} minutes are over.

Set an alarm for {hour}:{minute}.
There should be an alarm when it is {hour}:{minute}.
Please ring at {hour}:{minute} sharp.

Wake me up at {hour}:{minute}.
I have to get out of bed at {hour}:{minute}.
My sleep ends at {hour}:{minute}, ring then.

Alarm at {hour}:{minute}, please.
Could the alarm go off at {hour}:{minute}?
Make some noise when the clock says {hour}:{minute}.

Send a message to {contact} saying {text}.
Let {contact} read this: {text}.
Let {contact} know this: {text}.

Text {contact} that says {text}.
A note for {contact} with the words {text}.
Drop {contact} a line: {text}.

Tell {contact}: {text}.
Pass this on to {contact}: {text}.
{contact} should hear from me: {text}.

Ring {contact} for me.
Get {contact} on the line.
Could you dial the number of {contact}?

I want to talk to {contact}.
Connect me with {contact}.
A conversation with {contact} is needed.

Play some {genre}.
A little {genre} would be nice.
Let us listen to {genre}.

Put on {genre}.
Time for {genre}, start it.
Fill the house with {genre}.

I want to hear {genre}.
My ears long for {genre}.
Give me {genre} from the speakers.

What is the weather {day}?
Which kind of weather do we get {day}?
How does the sky look {day}?

Will it rain {day}?
Do I need an umbrella {day}?
Is any rain expected {day}?

Weather for {day}, please.
I would like a forecast for {day}.
Show the outlook on the weather of {day}.

Turn {state} the light in the {room}.
Make sure that the {room} lamp is {state}.
The lamp of the {room} has to be {state}.

Switch the {room} light {state}.
I want the {room} lamp to go {state}.
Lamp of the {room}: {state}, please.

Light {state} in the {room}.
In the {room} the lamp should be {state}.
Could the {room} have its lamp {state}?

Set the volume to {level}.
Let the sound be at {level}.
Loudness {level} is what I want.

Volume at {level} percent.
Sound level {level} percent, thanks.
I would enjoy {level} percent of the loudness.

Change the volume to {level} percent.
Make it {level} percent loud.
Adjust how loud it is, {level} percent.

Heat the {room} to {degrees} degrees.
The {room} should be {degrees} degrees warm.
Bring the temperature of the {room} up to {degrees} degrees.

Set the {room} to {degrees} degrees.
I want {degrees} degrees in the {room}.
Thermostat of the {room}: {degrees} degrees.

Add a reminder to {task} {day}.
Make a note for {day} that I have to {task}.
Do not let me forget {day}: {task}.

{day}, remind me to {task}.
When it is {day}, say that I must {task}.
A memo for {day}: {task}.

Remind me to {task} {day}.
I must {task} {day}, so jog my memory.
Warn me {day} that I should {task}.

Call {contact}.
Phone {contact}, will you?
Reach {contact} by telephone.
"""  # noqa: E501

PIECES: tuple[tuple[str, ...], ...] = tuple(tuple(block.splitlines()) for block in _BLOCKS.strip().split("\n\n"))
