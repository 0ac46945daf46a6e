import pytest


def pytest_collection_modifyitems(items):
    """The module under test can do more than each training asks of it, and runs resume in other folders, which Lightning remarks."""
    for item in items:
        if item.path.parent.name == "compatibility":
            item.add_marker(pytest.mark.filterwarnings("ignore:You defined a .validation_step. but"))
            item.add_marker(pytest.mark.filterwarnings("ignore:The dirpath has changed"))
