"""What makes the three daemons one appliance: wire, config, journal, lifecycle, sound, command."""

import os

# For matrices that nobody multiplies here, numpy would start a thread a core in every process,
# which costs a third of its start-up. Before numpy is imported, and for the processes we start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
