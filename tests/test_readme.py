import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readmes_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["x"].shape == (10, 5, 3)
