"""Says in a sentence that a script was interrupted before it began: what it imports takes seconds. Imported first.

Once a script has begun, `cujax.cli.main` takes over.
"""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    print("\nInterrupted before anything was computed.", file=sys.stderr, flush=True)
    os._exit(130 if number == signal.SIGINT else 143)


for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, _end)
