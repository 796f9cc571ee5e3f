"""unpack.py WHEEL SHA256 DEST [FROM TO]...: checks a wheel's digest, then copies members of it into DEST.

FROM is a member of the wheel, or a directory of it (with a slash at its end); TO is its name in DEST.
"""

import hashlib
import os
import shutil
import sys
import zipfile

wheel, expected, dest = sys.argv[1:4]
rules = list(zip(sys.argv[4::2], sys.argv[5::2]))

digest = hashlib.sha256()
with open(wheel, "rb") as file:
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    if digest.hexdigest() != expected:
        sys.exit("%s\n  has sha256  %s\n  instead of  %s" % (wheel, digest.hexdigest(), expected))

    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        for source, target in rules:
            found = [name for name in names if name == source or source.endswith("/") and name.startswith(source)]
            if not found:
                sys.exit("%s has no %s" % (wheel, source))
            for name in found:
                path = os.path.join(dest, target + name[len(source):])
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with archive.open(name) as member, open(path, "wb") as out:
                    shutil.copyfileobj(member, out, 1 << 20)

# The directory is used unchecked once it has its final name, so its bytes have to be on the disk before that.
os.sync()
