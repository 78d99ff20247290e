"""How the embedded model is made: pictures, questions, training, export, evaluation. Not part of the installed package.

Everything is drawn from numbers: no font, picture, weight or text is read from the machine. The steps are files, in the
order in which they are needed: `scene` → `render` → `questions` → `tokens` → `targets` → `network` → `train` → `export`
→ `benchmarks` → `evaluate`. README.md in this folder tells the story and the commands.

    python -m embedded.make --help
"""
