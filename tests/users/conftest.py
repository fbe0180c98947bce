"""What a call rightly says of tiny networks is expected in this folder, but where it is what a test is about."""

from pathlib import Path

from tests.cases import NOTICES

HERE = Path(__file__).parent
ABOUT_NOTICES = ("test_silent.py", "test_excitation_mass.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and item.path.name not in ABOUT_NOTICES:
            item.add_marker(NOTICES)
