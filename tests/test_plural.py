"""Messages say 1 picture and 2 pictures."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import accel_flowers
from accel_flowers.core.plural import in_sentence, number_of

_THINGS = "pictures|photos|images|files|classes|epochs|steps|workers|groups|tensors|batches|labels|runs|rows|cells"
_NEVER_ONE = (
    "settings of a fixed size, columns, classes of a model or a confusion matrix, and lists that are spoken of only when "
    "they are longer"
)
_PLURAL_ALWAYS = {
    "len(numbers)", "len(class_names[finest])", "len(table.class_names)", "len(class_names)", "len(self.class_names)",
    "len(labels)", "total", "side", "len(pairs) - most", "left_out", "length.planned", "len(self)", "len(runs)",
    "sizes[least]", "sizes[most]", "len(sizes)", "num_images", "images_per_class", "num_workers", "micro_batch",
    "part_name(main.part)", "words.part_name(part)", "len(absent)", "' or '.join((f'{count:,}' for count in counts))",
    "'more' if given > len(samples) else given", "len(predictions.files)", "len(wanted)", "each", "smaller[1]", "each * processes",
    "len(table.files)", "lines(base.run_dir)[-1]['step']", "_PROOFS", "size",
}  # fmt: skip


def _sentences() -> Iterator[tuple[str, str]]:
    """Every text with a number in it that the program holds, and where."""
    for path in sorted(Path(accel_flowers.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
                    for part in node.values
                ]
                yield f"{path.name}:{node.lineno}", "".join(parts)


def test_no_message_says_1_pictures() -> None:
    found = list(_sentences())
    assert len(found) > 300
    wrong = [
        f"{where}: {text}"
        for where, text in found
        for number in re.findall(rf"\{{([^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*)\}} (?:{_THINGS})\b(?!/)", text)
        if number not in _PLURAL_ALWAYS
    ]
    assert not wrong, f"number_of knows 1 from 2; what is never one ({_NEVER_ONE}) stands in _PLURAL_ALWAYS"
    assert not [
        f"{where}: {text}" for where, text in found if re.search(r"\b(?:picture|file|class|epoch|step)\(e?s\)", text)
    ]


def test_names_of_classes_in_sentences() -> None:
    """As they are where nobody takes them for a number, a word or a sign of the sentence."""
    names = ("rose", "été", "two words", "薔薇", "1", "007", "none", "No", "a,b", "Zürich (2)", "~")
    said = ("rose", "été", "two words", "薔薇", "'1'", "'007'", "'none'", "'No'", "'a,b'", "'Zürich (2)'", "'~'")
    assert tuple(map(in_sentence, names)) == said


def test_numbers_of_things() -> None:
    assert number_of(1, "picture") == "1 picture"
    assert [number_of(count, "class", many="classes") for count in (0, 1, 1000)] == [
        "0 classes",
        "1 class",
        "1,000 classes",
    ]
