"""The phantom: a toy chest X-ray, drawn by formula, whose findings are known exactly.

    wordings     sentences of another hospital about the same facts
    facts        which findings there are; a report <-> the facts that it states, exactly
    anatomy      one healthy person, and all that a picture without findings shows
    draw         facts -> pixels; its docstring says how to add a finding
    prepare      draws and packs the data set, makes its tokenizer
    train_vae    trains a small autoencoder for it
"""
