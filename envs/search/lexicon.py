"""The words that a generated world is made of."""

from __future__ import annotations

FIRST_NAMES = tuple(
    """Ada Amos Bela Boris Cara Cyril Dora Edwin Elsa Emil Fiona Felix Gilda Gregor Hanna Hugo
    Ida Igor Irene Jonas Judith Karl Klara Leo Lydia Magnus Mara Nadia Nils Olga Oscar Paula
    Quentin Rosa Rufus Selma Silas Tessa Theo Ursula Victor Wanda Walter Xenia Yara Yuri Zelda Zeno
    """.split()
)
LAST_NAMES = tuple(
    """Abbot Barlow Birch Calder Carver Dalton Draper Eastman Elgin Falk Fenwick Garner Granger
    Hadley Harper Ibsen Irving Jarvis Keller Kirby Lambert Lowell Marlow Mercer Nash Norwood
    Ogden Osborn Palmer Pryor Quill Ramsey Rowe Sadler Sawyer Tanner Thorne Upton Vance Verdi
    Wallace Webber Winslow Yarrow Yates Zander Zeller Ziegler
    """.split()
)
CITIES = tuple(
    """Alderham Ashmere Belcaster Brackton Calverley Corsby Dunmere Eldwick Fairholt Farrowby
    Glenmoor Greyport Hallowby Harrowdale Ilmere Ivyford Kestrel Kingsmarsh Lindholm Lorwick
    Merrowby Milbrook Northolt Oakmere Osterby Pellworth Queensferry Ravenholt Rookhaven Saltmarsh
    Stonebridge Tarnwick Thistledown Ulverley Valemount Westerby Whitcombe Wrenfield Yarmoor
    Zephyrton
    """.split()
)
COUNTRIES = tuple(
    """Albaria Belovia Cambrosia Dravonia Estoria Floravia Galdonia Hestia Istrovia Jorvania
    Kaldoria Lumeria Moravska Nordavia Orlandia Pelagonia Quivara Rosalia Sarovia Tolvenia Umbria
    Valdoria Westmark Zubrovia
    """.split()
)
TITLE_ADJECTIVES = tuple(
    """Amber Ancient Bitter Broken Copper Crimson Distant Drowned Empty Frozen Gentle Golden
    Hidden Hollow Iron Ivory Jade Lonely Marble Midnight Pale Quiet Restless Scarlet Silent Silver
    Sleeping Stolen Velvet Wandering Winter Wooden
    """.split()
)
TITLE_NOUNS = tuple(
    """Anchor Bell Bridge Candle Clock Compass Crown Curtain Dagger Door Feather Flame Garden
    Harbour Horizon Island Kettle Lantern Letter Meadow Mirror Orchard Pillar Ribbon River Shadow
    Staircase Summer Tower Violin Well Window
    """.split()
)
