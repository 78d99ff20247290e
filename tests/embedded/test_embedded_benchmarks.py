"""The generated benchmarks: official layouts, files that join, and answers that are true of what was drawn.

`truth` answers a question from a scene's shapes and strings alone, by reading its text: it shares nothing with the code
that asked. `run` does the same for GQA's programs.
"""

import base64
import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import embedded.benchmarks as benchmarks
from embedded.benchmarks import BENCHMARKS, gqa, mmbench_cn, mme, pope, textvqa, vqav2, write
from embedded.benchmarks.__main__ import main
from embedded.questions import FAMILIES, Question
from embedded.render import render
from embedded.scene import COLORS, KINDS, SIDE, draw
from embedded.tokens import INSTRUCTION, SPECIAL, UNKNOWN, tokenizer
from fitprune.errors import FitPruneError
from fitprune.evaluation.answers import AnswersFile
from fitprune.evaluation.benchmarks import find
from fitprune.evaluation.benchmarks.textvqa import evaluate, read_annotations
from fitprune.questions import read_questions

PICTURES = 8
WHERE = {  # folder: question file, image folder, split
    "textvqa": ("llava_textvqa_val_v051_ocr.jsonl", "train_images", "textvqa"),
    "gqa": ("llava_gqa_testdev_balanced.jsonl", "data/images", "gqa"),
    "MME": ("llava_mme.jsonl", "MME_Benchmark_release_version", "mme"),
    "pope": ("llava_pope_test.jsonl", "val2014", "pope"),
    "vqav2": ("llava_vqav2_mscoco_test2015.jsonl", "test2015", "vqav2"),
    "vizwiz": ("llava_test.jsonl", "test", "vizwiz"),
    "mm-vet": ("llava-mm-vet.jsonl", "images", "mmvet"),
    "calibration": ("statistical_analysis_data.jsonl", "images", "calibration"),
}
BARE = ("mm-vet",)  # asked without an instruction, about PNG files
KIND = {f"{kind}es" if kind == "cross" else f"{kind}s": kind for kind in KINDS} | {kind: kind for kind in KINDS}
OTHER_SIDE = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # x, y


def cell_of(scene, shape):
    """Column and row of the cell that a shape's middle lies in."""
    return tuple((at - scene.layout.margin) // scene.layout.cell for at in (shape.x, shape.y))


def truth(scene, text):
    """The answer to a question about `scene.shapes` and `scene.texts`; None if it makes no sense there."""
    words = text.rstrip("?").split()
    kinds, colors = [KIND[w] for w in words if w in KIND], [w for w in words if w in COLORS]
    shapes = scene.shapes
    number = [t.text for t in scene.texts if t.text.isdigit()]
    word = [t.text for t in scene.texts if not t.text.isdigit()]
    told = {True: "yes", False: "no"}

    def only(found, answer):
        return answer(found[0]) if len(found) == 1 else None

    def beside(direction):
        found = [s for s in shapes if (s.kind, s.color) == (kinds[-1], colors[-1])]
        if len(found) != 1:
            return None
        x, y = (a + b for a, b in zip(cell_of(scene, found[0]), OTHER_SIDE[direction], strict=True))
        return only([s for s in shapes if cell_of(scene, s) == (x, y)], lambda s: s.kind)

    def several():
        return sum((not kinds or s.kind in kinds) and (not colors or s.color in colors) for s in shapes)

    if text == "What number is written?":
        return only(number, str)
    if text == "What word is written?":
        return only(word, str)
    if match := re.fullmatch(r"(What is|Is) the (\w+) (?:digit of the number|letter of the word) ?(\w?)\?", text):
        at = ("first", "second", "third").index(match[2])
        found = only(number if "number" in words else word, lambda string: string[at : at + 1] or None)
        return found and (told[found == match[3]] if match[3] else found)
    if match := re.fullmatch(r"Is the (number|word) (\w+) written in this image\?", text):
        return told[match[2] in (number if match[1] == "number" else word)]
    if match := re.fullmatch(r"What shape is directly (.+) the \w+ \w+\?", text):
        return beside(match[1])
    if match := re.fullmatch(r"Is there a \w+ directly (.+) the \w+ \w+\?", text):
        found = beside(match[1])
        return found and told[found == kinds[0]]
    if text.startswith("How many"):
        return str(several())
    if match := re.fullmatch(r"Are there (\d) [\w ]+ in this image\?", text):
        return told[several() == int(match[1])]
    if re.fullmatch(r"Is there (an [aeiou]|a [^aeiou])[\w ]+ in (this image|the imange|the image)\?", text):
        return told[several() > 0]
    if text.startswith("What shape is "):
        return only([s for s in shapes if s.color == colors[0]], lambda s: s.kind)
    assert text.startswith(("What color is the ", "Is the ")), text
    color = only([s for s in shapes if s.kind == kinds[0]], lambda s: s.color)
    if color is None or text.startswith("What"):
        return color
    if " or " in text:
        return color if color in colors else None
    return told[color == colors[0]]


@pytest.fixture(scope="module")
def made():
    return {name: build(PICTURES) for name, build in BENCHMARKS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    dest = tmp_path_factory.mktemp("eval")
    write(dest, PICTURES)
    return dest


def lines(data):
    assert data.endswith(b"\n")
    assert b"\r" not in data
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def questions(made, name):
    return lines(made[name][WHERE[name][0]])


def index_of(image):
    stem = image.split("/")[-1].rsplit(".")[0].split("_")[-1].lstrip("n")
    return int(stem, 16) & 0xFFFFFFFF if stem.startswith("5eed") else int(stem)


def scene_of(name, image):
    return draw(WHERE[name][2], index_of(image))


def tops(files):
    return {path.split("/")[0] for path in files}


def test_layouts_are_the_official_ones(made):
    assert tops(made["textvqa"]) == {"llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json", "train_images"}
    assert all(re.fullmatch(r"train_images/[0-9a-f]{16}\.jpg", p) for p in made["textvqa"] if p.startswith("train_"))
    assert tops(made["gqa"]) == {"llava_gqa_testdev_balanced.jsonl", "data"}
    assert {p for p in made["gqa"] if p.endswith(".json")} == {"data/testdev_balanced_questions.json"}
    assert all(re.fullmatch(r"data/images/n\d+\.jpg", p) for p in made["gqa"] if p.endswith(".jpg"))
    assert tops(made["MME"]) == {"llava_mme.jsonl", "MME_Benchmark_release_version"}
    parts = [p.split("/") for p in made["MME"] if "/" in p]
    assert {p[1] for p in parts} == {"existence", "count", "position", "color", "OCR"}
    assert {len(p) for p in parts} == {3}  # pictures beside their text files
    assert tops(made["pope"]) == {"llava_pope_test.jsonl", "coco", "val2014"}
    assert {p for p in made["pope"] if p.startswith("coco/")} == {
        f"coco/coco_pope_{split}.json" for split in ("adversarial", "popular", "random")
    }
    assert all(re.fullmatch(r"val2014/COCO_val2014_\d{12}\.jpg", p) for p in made["pope"] if p.endswith(".jpg"))
    assert tops(made["vqav2"]) == {vqav2.ASKED, vqav2.LISTED, "test2015"}
    assert (find("vqav2").questions, *find("vqav2").needs) == (vqav2.ASKED, vqav2.LISTED)
    assert all(re.fullmatch(r"test2015/COCO_test2015_\d{12}\.jpg", p) for p in made["vqav2"] if p.endswith(".jpg"))
    assert tops(made["vizwiz"]) == {"llava_test.jsonl", "test"}
    assert all(re.fullmatch(r"test/VizWiz_test_\d{8}\.jpg", p) for p in made["vizwiz"] if p.endswith(".jpg"))
    assert tops(made["mm-vet"]) == {"llava-mm-vet.jsonl", "images"}
    assert all(re.fullmatch(r"images/v1_\d+\.png", p) for p in made["mm-vet"] if not p.endswith(".jsonl"))
    assert tops(made["calibration"]) == {"statistical_analysis_data.jsonl", "images"}


def test_vqav2_asks_part_of_what_it_lists(made):
    asked, listed = (lines(made["vqav2"][name]) for name in (vqav2.ASKED, vqav2.LISTED))
    assert [line for line in listed if line in asked] == asked  # in the same order
    assert 0 < len(asked) < len(listed)
    assert len({line["question_id"] for line in listed}) == len(listed)
    for line in listed:
        assert line["question_id"] // 1000 == index_of(line["image"])
    pictures = {line["image"] for line in asked}
    assert {line["image"] for line in listed if line not in asked}.isdisjoint(pictures)  # whole pictures


@pytest.mark.parametrize("name", ["vizwiz", "mm-vet"])
def test_one_question_about_each_picture(made, name):
    asked = questions(made, name)
    assert [line["question_id"] for line in asked] == [index_of(line["image"]) for line in asked]
    assert len({line["text"].split(" ")[1] for line in asked}) > 2  # of several kinds


@pytest.mark.parametrize("name", WHERE)
def test_every_question_is_in_llavas_form_and_has_the_picture_of_its_scene(made, name):
    _, images, split = WHERE[name]
    asked = questions(made, name)
    for line in asked:
        assert list(line) == ["question_id", "image", "text", "category"]
        question, *instruction = line["text"].split("\n")
        assert question.endswith("?")
        assert instruction == ([] if name in BARE else [INSTRUCTION])
    pictures = {path for path in made[name] if path.endswith((".jpg", ".png"))}
    assert pictures == {f"{images}/{line['image']}" for line in asked}
    assert len(pictures) == PICTURES * (len(mme.CATEGORIES) if name == "MME" else 1)
    for path in pictures:
        with Image.open(io.BytesIO(made[name][path])) as image:
            assert (image.format, image.mode) == ("PNG" if name in BARE else "JPEG", "RGB")
            assert image.size == (SIDE, SIDE)
            pixels = np.asarray(image, dtype=int)
        drawn = np.asarray(render(draw(split, index_of(path))), dtype=int)
        assert abs(pixels - drawn).mean() < 3  # another scene differs by tens


def test_no_picture_is_in_two_places(made):
    pictures = [content for files in made.values() for path, content in files.items() if path.endswith(".jpg")]
    places = len(WHERE) - 2 + len(mme.CATEGORIES) + 2  # ScienceQA and SEED-Bench; MMBench's are inside, MM-Vet's PNG
    assert len(set(pictures)) == len(pictures) == PICTURES * places
    assert sum(map(len, pictures)) / len(pictures) < 12_500  # so that 400 of them stay below 5 MB


@pytest.mark.parametrize("name", WHERE)
def test_questions_make_sense_and_can_be_spelled(made, name):
    for line in questions(made, name):
        text = line["text"].split("\n")[0]
        assert truth(scene_of(name, line["image"]), text) is not None
        assert SPECIAL[UNKNOWN] not in tokenizer().encode(line["text"]).tokens


def test_textvqa_annotations_are_true_and_perfect_answers_score_100(folder):
    home = folder / "textvqa"
    content = json.loads((home / textvqa.ANNOTATIONS).read_text())
    assert (content["dataset_name"], content["dataset_version"]) == ("textvqa", "0.5.1")
    asked = read_questions(home / textvqa.QUESTIONS)
    entries = content["data"]
    assert [e["question_id"] for e in entries] == list(range(len(asked)))
    assert len({(e["image_id"], e["question"].lower()) for e in entries}) == len(asked)
    perfect = [truth(scene_of("textvqa", q.image), q.text.split("\n")[0]) for q in asked]
    for question, entry, answer in zip(asked, entries, perfect, strict=True):
        assert entry["answers"] == [answer] * 10
        assert (entry["image_id"], f"{entry['image_id']}.jpg") == (question.question_id, question.image)
        assert (entry["image_width"], entry["image_height"], entry["set_name"]) == (SIDE, SIDE, "val")
    assert {q.category for q in asked} == {"number", "word", "character"}
    for answers, score in ((perfect, 100), (["none of it"] * len(asked), 0)):
        with AnswersFile(folder / "answers.jsonl", asked, "m", overwrite=True) as file:
            file.write(answers)
        assert evaluate(read_annotations(home / textvqa.ANNOTATIONS), folder / "answers.jsonl").headline == score


def test_mme_as_its_converter_and_calculation_read_it(made):
    release = {}
    for path, content in made["MME"].items():
        if path.endswith(".txt"):
            assert content.endswith(b"\n")
            for line in content.decode().strip().split("\n"):
                question, answer = line.split("\t")
                release[path.split("/")[1], path.split("/")[2], question] = answer
    results = {}
    for line in questions(made, "MME"):
        assert line["question_id"] == line["image"]
        category = line["question_id"].split("/")[0]
        assert line["category"] == category
        stem = line["question_id"].split("/")[-1].split(".")[0] + ".txt"
        question = line["text"].replace(INSTRUCTION, "").strip()
        answer = truth(scene_of("MME", line["image"]), question)
        results.setdefault(category, []).append((stem, release.pop((category, stem, f"{question} {mme.TAIL}")), answer))
    assert not release  # every line of every text file was asked
    assert set(results) == {"existence", "count", "position", "color", "OCR"}
    for rows in results.values():
        assert len(rows) == 2 * PICTURES
        for first, second in zip(rows[::2], rows[1::2], strict=True):
            assert first[0] == second[0]
            assert {first[1], second[1]} == {"Yes", "No"}
        assert all(label.lower() == answer for _, label, answer in rows)


def test_pope_labels_match_by_position_and_are_true(made):
    asked = questions(made, "pope")
    assert list(dict.fromkeys(line["category"] for line in asked)) == ["adversarial", "random", "popular"]
    positives = {}
    for split, first in (("adversarial", 1), ("random", 10000001), ("popular", 20000001)):
        labels = lines(made["pope"][f"coco/coco_pope_{split}.json"])
        mine = [line for line in asked if line["category"] == split]
        assert [line["question_id"] for line in mine] == list(range(first, first + len(labels)))
        assert [line["label"] for line in labels] == ["yes", "no"] * (len(labels) // 2)
        for line, label in zip(mine, labels, strict=True):
            assert (label["image"], label["text"]) == (line["image"], line["text"].split("\n")[0])
            assert label["label"] == truth(scene_of("pope", label["image"]), label["text"])
            assert ("imange" in label["text"]) == label["text"].startswith("Is there an ")
        positives[split] = [(line["image"], line["text"]) for line in labels if line["label"] == "yes"]
        assert len({(line["image"], line["text"]) for line in labels}) == len(labels)
        for image, number in Counter(line["image"] for line in labels).items():
            things = {(s.color, s.kind) for s in scene_of("pope", image).shapes}
            assert number == 2 * min(3, len(things))
    assert positives["adversarial"] == positives["random"] == positives["popular"]


def test_pope_spells_its_two_questions():
    assert pope.ask("orange circle") == "Is there an orange circle in the imange?"
    assert pope.ask("red circle") == "Is there a red circle in the image?"


def test_pope_asks_for_what_is_frequent_and_for_what_stands_beside():
    pictures = 20  # enough that things repeat
    files = pope.build(pictures)
    scenes = [{f"{s.color} {s.kind}" for s in draw("pope", at).shapes} for at in range(pictures)]
    weigh = {
        "popular": lambda thing, there: sum(thing in scene for scene in scenes),
        "adversarial": lambda thing, there: sum(len(scene & there) for scene in scenes if thing in scene),
    }
    asked = {}
    for split in ("random", *weigh):
        for line in lines(files[f"coco/coco_pope_{split}.json"]):
            if line["label"] == "no":
                thing = re.fullmatch(r"Is there an? (.+) in the imange?\?|.* a (.+) in the image\?", line["text"])
                asked.setdefault((split, index_of(line["image"])), []).append(thing[1] or thing[2])
    for at, there in enumerate(scenes):
        for split, weight in weigh.items():
            rest = {f"{c} {k}" for c in COLORS for k in KINDS} - there - set(asked[split, at])
            worst = min(weight(thing, there) for thing in asked[split, at])
            assert worst >= max(weight(thing, there) for thing in rest)
    different = {split: len({t for (s, _), ts in asked.items() if s == split for t in ts}) for split in ("random", *weigh)}
    assert different["popular"] < different["adversarial"] < different["random"]


def run(program, scene):
    """The answer of a GQA program, and the id in its last selecting step, from the scene's shapes."""
    results = []
    for step in program:
        verb, detail, argument = (*step["operation"].partition(" ")[::2], step["argument"])
        assert step["dependencies"] == ([len(results) - 1] if results else [])
        given = results[-1] if results else scene.shapes
        if verb == "select":
            given = [s for s in given if argument.split(" ")[0] in ("shape", s.kind)]
        elif verb == "filter":
            given = [s for s in given if getattr(s, detail) == argument]
        elif verb == "relate":
            dx, dy = OTHER_SIDE[re.search(r"directly (.+),s", argument)[1]]
            cells = {(x + dx, y + dy) for x, y in (cell_of(scene, s) for s in given)}
            given = [s for s in scene.shapes if cell_of(scene, s) in cells]
        elif verb == "query":
            given = given[0].kind if argument == "name" else getattr(given[0], argument)
        elif verb == "choose":
            given = next(value for value in argument.split("|") if value == getattr(given[0], detail))
        elif verb == "verify":
            given = "yes" if getattr(given[0], detail) == argument else "no"
        elif verb == "exist":
            given = "yes" if given else "no"
        elif verb == "count":
            given = str(len(given))
        results.append(given)
    return results


def test_gqa_records_are_true_and_their_programs_give_the_answers(made):
    asked = questions(made, "gqa")
    records = json.loads(made["gqa"][gqa.TRUTH])
    assert [line["question_id"] for line in asked] == list(records)
    assert len(records) == len(asked)
    for line, (key, record) in zip(asked, records.items(), strict=True):
        scene = scene_of("gqa", line["image"])
        assert record["question"] == line["text"].split("\n")[0]
        assert f"{record['imageId']}.jpg" == line["image"]
        assert record["isBalanced"] is True
        assert record["answer"] == truth(scene, record["question"])
        results = run(record["semantic"], scene)
        assert results[-1] == record["answer"]
        ids = {gqa.object_id(scene, shape): shape for shape in scene.shapes}
        narrowed = sum(step["operation"].split()[0] in ("select", "filter") for step in record["semantic"]) - 1
        named = re.search(r"\((.+)\)", record["semantic"][0]["argument"])[1]
        assert [ids[one] for one in named.split(",") if one != "-"] == list(results[narrowed])
        for step, found in zip(record["semantic"], results, strict=True):
            if step["operation"] == "relate":
                assert [ids[re.search(r"\((.+)\)", step["argument"])[1]]] == found
                assert [ids[one] for one in record["annotations"]["answer"].values()] == found
        for text in ("question", "fullAnswer", "answer"):
            for place, one in record["annotations"][text].items():
                assert record[text].split()[int(place)].strip("?.,") == ids[one].kind
        assert record["fullAnswer"].lower().startswith(record["answer"]) == (record["answer"] in ("yes", "no"))
        assert record["answer"] in record["fullAnswer"].lower()
        assert record["equivalent"] == [key]
        assert key not in record["entailed"]
        assert all(records[other]["imageId"] == record["imageId"] for other in record["entailed"])
    kinds = {(r["types"]["structural"], r["types"]["semantic"]) for r in records.values()}
    queries = {("query", meaning) for meaning in ("attr", "cat", "rel", "global")}
    assert kinds == queries | {("choose", "attr"), ("verify", "attr"), ("verify", "obj")}
    assert sum(bool(record["entailed"]) for record in records.values()) > len(records) / 4


def all_questions():
    """Every question with its answer that two kinds and three colours allow, of the families that can entail."""
    kinds, colors = ("circle", "square"), ("red", "blue", "green")
    for kind, color in itertools.product(kinds, colors):
        yield Question("color", f"What color is the {kind}?", color)
        yield Question("shape", f"What shape is {color}?", kind)
        for answer in ("yes", "no"):
            yield Question("verify", f"Is the {kind} {color}?", answer)
            yield Question("exist", f"Is there a {color} {kind} in the image?", answer)
        for other in colors:
            if other != color:
                yield Question("choose", f"Is the {kind} {color} or {other}?", color)
                yield Question("choose", f"Is the {kind} {other} or {color}?", color)


def test_gqa_entailments_are_those_of_all_small_worlds():
    """A question follows if its answer is the same wherever both can be asked; `choose` by exclusion is left out."""
    things = [SimpleNamespace(kind=k, color=c) for k in ("circle", "square", "star") for c in ("red", "blue", "green", "pink")]  # fmt: skip
    worlds = [
        SimpleNamespace(shapes=shapes, texts=()) for size in (1, 2, 3) for shapes in itertools.combinations_with_replacement(things, size)
    ]
    every = list(all_questions())
    answers = {text: [truth(world, text) for world in worlds] for text in {one.text for one in every}}
    followed = 0
    for first, second in itertools.permutations(every, 2):
        found = {b for a, b in zip(answers[first.text], answers[second.text], strict=True) if a == first.answer and b}
        if first.text == second.text or second.answer not in found:
            continue  # the two answers exclude each other: no picture has both
        follows = found == {second.answer}
        same_kind = any(kind in first.text + first.answer and kind in second.text for kind in ("circle", "square"))
        if second.family == "choose" and (first.answer == "no" or not same_kind):
            assert not gqa.entails(first, second)
        else:
            assert gqa.entails(first, second) == follows, (first, second)
        followed += follows
    assert followed > 100


def test_the_right_choice_is_the_truth_about_the_picture_and_no_other_is(made):
    """In all three benchmarks of multiple choice: what `truth` answers is among the choices once, under its letter."""
    checked = Counter()

    def check(split, index, text, options, letter):
        answer = truth(draw(split, index), text)
        assert options.count(answer) == 1
        assert len(set(options)) == len(options) >= 2
        assert "ABCDE"[options.index(answer)] == letter
        checked[split, letter] += 1

    problems = json.loads(made["scienceqa"]["problems.json"])
    folders = sorted({int(p.split("/")[2]) for p in made["scienceqa"] if p.endswith(".jpg")})
    for item in json.loads(made["scienceqa"]["llava_test_CQM-A.json"]):
        one, said = problems[item["id"]], item["conversations"]
        assert said[1]["value"] == "ABCDE"[one["answer"]]
        assert ("image" in item) == ("<image>" in said[0]["value"]) == bool(one["image"])
        if "image" in item:
            index = folders.index(int(item["image"].split("/")[0]))
            check("scienceqa", index, one["question"], one["choices"], said[1]["value"])
        else:
            told = re.fullmatch(r"There (?:is|are) (\d) (\w+) shapes?\.", one["hint"])
            assert one["question"] == f"How many {told[2]} shapes are there?"
            assert one["choices"][one["answer"]] == told[1]
            assert said[0]["value"].startswith(f"Context: {one['hint']}\n")
    assert json.loads(made["scienceqa"]["pid_splits.json"])["test"] == list(problems)

    seed = json.loads(made["seed_bench"]["SEED-Bench.json"])
    for line, one in zip(lines(made["seed_bench"]["llava-seed-bench.jsonl"]), seed["questions"], strict=True):
        options = [one[f"choice_{letter}"] for letter in "abcd"]
        check("seed", index_of(line["image"]), one["question"], options, one["answer"])
        assert line["text"].split("\n")[1:-1] == [f"{a}. {b}" for a, b in zip("ABCD", options, strict=True)]
        assert str(line["question_id"]) == one["question_id"]
        assert line["image"] == f"SEED-Bench-{'video-' * (one['data_type'] == 'video')}image/{one['data_id']}"
        assert f"{line['image']}" in made["seed_bench"]
    assert {one["data_type"] for one in seed["questions"]} == {"image", "video"}

    rows = list(csv.DictReader(made["mmbench"]["mmbench_dev_20230712.tsv"].decode().split("\n"), delimiter="\t"))
    for row in rows:
        options = [row[letter] for letter in "ABCD" if row[letter]]
        check("mmbench", int(row["index"]) % 1_000_000, row["question"], options, row["answer"])
        with Image.open(io.BytesIO(base64.b64decode(row["image"]))) as image:
            drawn = np.asarray(render(draw("mmbench", int(row["index"]) % 1_000_000)), dtype=int)
            assert abs(np.asarray(image, dtype=int) - drawn).mean() < 8
    for split in ("scienceqa", "seed", "mmbench"):
        assert sum(letter != "A" for where, letter in checked if where == split)

    chinese = csv.DictReader(made["mmbench_cn"]["mmbench_dev_cn_20231003.tsv"].decode().split("\n"), delimiter="\t")
    english = {word: name for name, word in mmbench_cn.WORDS.items()}
    for row in chinese:
        kind = english[re.fullmatch("图中的(.+)是什么颜色？", row["question"])[1]]
        scene = draw("mmbench", int(row["index"]) % 1_000_000)
        assert truth(scene, f"What color is the {kind}?") == english[row[row["answer"]]]


def test_calibration_asks_all_families_alike_and_repeats_no_id(made):
    asked = questions(made, "calibration")
    assert [line["question_id"] for line in asked] == list(range(PICTURES * 16 // 5))
    count = Counter(line["category"] for line in asked)
    assert set(count) == set(FAMILIES)
    assert max(count.values()) - min(count.values()) <= 1


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_two_writes_give_the_same_bytes_and_nothing_else(folder, made, tmp_path):
    assert {f"{name}/{path}": data for name, files in made.items() for path, data in files.items()} == {
        path: data for path, data in contents(folder).items() if path != "answers.jsonl"
    }
    assert main([str(tmp_path), "--pictures", "1"]) == 0
    once = contents(tmp_path)
    assert main([str(tmp_path), "--pictures", "1", "--overwrite"]) == 0
    assert contents(tmp_path) == once
    assert {path.name for path in tmp_path.iterdir()} == set(BENCHMARKS)


def test_what_is_there_stays_unless_told_otherwise(tmp_path):
    (tmp_path / "gqa").mkdir()
    (tmp_path / "gqa" / "mine.txt").write_text("precious")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(FitPruneError, match=r"gqa is not empty.*--overwrite"):
        write(tmp_path, 1)
    assert contents(tmp_path) == {"gqa/mine.txt": b"precious", "notes.txt": b"precious"}
    write(tmp_path, 1, overwrite=True)
    assert "gqa/mine.txt" not in contents(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "precious"


def test_a_failed_write_leaves_the_old_folder(tmp_path, monkeypatch):
    (tmp_path / "textvqa").mkdir()
    (tmp_path / "textvqa" / "old.txt").write_text("old")
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(FitPruneError, match="No space left"):
        write(tmp_path, 1, overwrite=True)
    assert contents(tmp_path) == {"textvqa/old.txt": b"old"}
    assert os.listdir(tmp_path) == ["textvqa"]


@pytest.mark.parametrize(("arguments", "said"), [(["--pictures", "0"], "give 1 or more"), ([], "not empty")])
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, arguments, said):
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "x").write_text("")
    assert main([str(tmp_path), *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_destination_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FitPruneError, match="cannot write benchmarks"):
        write(tmp_path / "file", 1)


def test_a_benchmark_is_one_file():
    files = {path.stem for path in Path(benchmarks.__file__).parent.glob("*.py")} - {"__init__", "__main__", "encode"}
    assert files == {name.lower().replace("-", "") for name in BENCHMARKS}
