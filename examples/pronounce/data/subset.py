#!/usr/bin/env python3
"""Picks the words of cmudict-subset.dict out of the whole CMU Pronouncing Dictionary.

    python3 subset.py cmudict.dict > cmudict-subset.dict
"""

import re
import sys
import zlib

# Words of 4 to 14 letters in their first pronunciation ("read", not "read(2)"), without the
# apostrophes, digits and periods of possessives and abbreviations.
LINE = re.compile(r"([a-z]{4,14}) [A-Z]")

# Of those, about every third: by checksum, so that the choice has nothing to do with the alphabet,
# and as many as stay below a megabyte.
KEPT = 0.316

with open(sys.argv[1], encoding="utf-8") as dictionary:
    for line in dictionary:
        entry = line.split("#")[0].strip()  # without the comment
        word = LINE.match(entry)
        if word and zlib.crc32(word[1].encode()) < KEPT * 2**32:
            print(entry)
