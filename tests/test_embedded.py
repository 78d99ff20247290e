"""What ships inside agrees with itself and with what its docstring says."""

from __future__ import annotations

import json

from fitprune.embedded import embedded
from fitprune.evaluation.questions import read_questions


def test_evaluation_and_calibration_share_no_picture() -> None:
    data = embedded()
    asked, fitted = read_questions(data.questions), read_questions(data.calibration)
    assert (len(asked), len(fitted)) == (438, 145)
    assert not {q.image for q in asked} & {q.image for q in fitted}


def test_every_question_has_its_picture_and_ten_answers() -> None:
    data = embedded()
    truth = {(a["image_id"], a["question"]): a["answers"] for a in json.loads(data.annotations.read_text())["data"]}
    for question in [*read_questions(data.questions), *read_questions(data.calibration)]:
        assert (data.images / str(question.image)).is_file()
        assert len(truth[str(question.question_id), question.text]) == 10
