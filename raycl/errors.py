"""The one exception that users see."""

from __future__ import annotations


class RayclError(Exception):
    """Something that the user can mend.

    The message names the field or file, says what is wrong and how to mend it. The command line
    prints it as it is and exits with status 2; any other exception is a defect of raycl.
    """
