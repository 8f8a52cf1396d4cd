"""Writes the pictures and questions of the task ``lightkv_tiny``, which are the same each time."""

import json
from pathlib import Path

from lightkv_gnn import tiny

FOLDER = Path(__file__).parent / "data" / "test"
GROUPS = ("vqa", "hallucination")
QUESTIONS = 16
SEED = 20


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for group in GROUPS:
        for number, (scene, question) in enumerate(tiny.sample_questions(group, QUESTIONS, SEED)):
            name = f"{group}-{number:02}.png"
            tiny.render(scene).save(folder / name, optimize=True)
            row = {"file_name": name, "question": question.prompt_text, "answer": question.answer}
            rows.append(json.dumps({**row, "group": group}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
