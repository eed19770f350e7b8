"""`python -m mllm`, the same as the console command `mllm`."""

import sys

from mllm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
