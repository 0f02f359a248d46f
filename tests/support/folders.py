"""Where the tests' own files lie, and the public captures and lab calls beside the repository."""

import os
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
DATA: Final = REPOSITORY / "tests/data"
SAMPLE: Final = DATA / "sample.pcap"  # two calls, by tests.support.callgen
SHARED: Final = Path(os.environ.get("SPANVAULT_SHARED", REPOSITORY.parent / "shared"))
