"""`accelerate launch -m lm_eval_calib.train CONFIG.yaml ...`"""

import sys

from lm_eval_calib.errors import CalibrationError
from lm_eval_calib.train.command import main

try:
    sys.exit(main())
except CalibrationError as error:
    print(f"lm_eval_calib.train: {error}", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    print("lm_eval_calib.train: interrupted; the same command resumes", file=sys.stderr)
    sys.exit(130)
