"""`python -m mvdjax`."""

import sys

from mvdjax.main import main

if __name__ == '__main__':
    sys.exit(main())
