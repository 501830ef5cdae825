"""Words that often start a sentence, and are no name there."""

from __future__ import annotations

from .stopwords import STOPWORDS

OPENERS = STOPWORDS | frozenset(
    """
    a according across add afterwards alarm altogether among answer anyone anybody apart arrange ask assume at bake
    begin besides bring build busy buy calculate call change check choose close combine coming compute concatenate
    connect consider convert count cut day deal decide determine divide double draw due earlier eat eight eleven
    employees enter estimate evaluate every everybody everyone exactly express fill finally find finish first five
    flip four get give given go growing half hand have heat hello hey hold how hurry identify imagine in initially
    instead join keep kindly last later lastly left let light list look lower make many math mathematically maybe
    measure men mix move multiply name next nine nobody note number one open order originally owing pack pay people
    pick place play please point pour press prices put raise read recall remember remind remove replace ring ride run
    say second select sell send set seven share show shut simplify since six solve someone somebody sometimes soon
    split spread start state still stop students subtract sum suppose swap switch take tell ten text thanks third
    three throw to today together tomorrow tonight total turn twelve twenty two unless use using volume wait wake walk
    weather what whatever whenever which who whose women work workers write yesterday
    """.split()
)
