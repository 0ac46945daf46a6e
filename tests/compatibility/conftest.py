import pytest

# what Lightning remarks on trainings that these tests mean to have
MEANT = (
    "You defined a .validation_step. but",
    "The dirpath has changed",
    "Be aware that when using .ckpt_path., callbacks used",
    ".*is called with Trainer configured with multiple .ModelCheckpoint. callbacks",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "compatibility":
            for message in MEANT:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}"))
