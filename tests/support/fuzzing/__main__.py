"""Print one JSON object a format, status 1 where there was a traceback."""

import json
import sys
import warnings

from tests.support.fuzzing import FORMATS, fuzz

warnings.simplefilter("ignore")
bad = False
for name in sys.argv[2:] or FORMATS:
    found = fuzz(name, int(sys.argv[1]))
    print(json.dumps(found), flush=True)
    bad |= bool(found["tracebacks"])
sys.exit(bad)
