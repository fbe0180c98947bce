"""Self-contained pages of HTML: style, script and data are put into a template."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files


def read_web(package: str, *names: str) -> str:
    """The files of the folder ``web`` of a package, joined."""
    return "\n".join((files(package) / "web" / name).read_text("utf-8") for name in names)


def fill(template: str, parts: Mapping[str, str]) -> str:
    """Put the parts in place of their ``{{names}}``, in one pass: nothing inside a part is taken for a placeholder.

    >>> fill("{{title}}: {{data}}", {"title": "{{data}}", "data": "1"})
    '{{data}}: 1'
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def script_json(data: object) -> str:
    r"""Return JSON that no name can break out of a script element with; NaN becomes null.

    >>> script_json({"</script>": [0.5, float("nan")]})
    '{"\\u003c/script>":[0.5,null]}'
    """
    text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _plain(value: object) -> object:
    """Lists and dicts that JSON can hold; seven digits of a number are enough to show it."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
