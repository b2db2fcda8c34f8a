#!/usr/bin/env python
"""Write a folder of bad images, and of sound ones that look bad, with what must become of each in verdicts.json.

  python scripts/bad_images.py DIR
  accel-flowers predict MODEL_DIR DIR                   # a row for each, exit code 1

Nothing in it is dangerous to look at, but for programs that trust what a file says of itself: some files claim
gigabytes, one is a pipe for which a reader waits for ever.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.bad_images import write_corpus


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR", help="new or empty folder")
    directory: Path = parser.parse_args().directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        parser.error(f"{directory} is there already and not an empty folder")
    verdicts = write_corpus(directory)
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    print(f"{len(verdicts)} files in {directory}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
