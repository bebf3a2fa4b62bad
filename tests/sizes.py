"""How much of a long test runs: a part in the light tier, drawn by HARMAUG_TEST_SEED; the whole where HARMAUG_TEST_WHOLE is set, as tests/reference does."""
import os

WHOLE = os.environ.get("HARMAUG_TEST_WHOLE") == "1"
SEED = int(os.environ.get("HARMAUG_TEST_SEED") or 0)


def some(whole, part):
    """The size of the whole test, or of the part."""
    return whole if WHOLE else part


def code_points(share, points=range(0x110000)):
    """Code points: all, or those below 0x500 and one in `share` of the others."""
    return [c for c in points if not 0xD800 <= c < 0xE000 and (WHOLE or c < 0x500 or c % share == SEED % share)]
