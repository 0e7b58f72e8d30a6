"""`python -m lm_eval_calib` is `lm-eval-calib`."""

import sys

from lm_eval_calib.cli import main

sys.exit(main())
