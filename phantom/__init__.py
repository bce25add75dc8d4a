"""The phantom: a chest X-ray drawn by formula, whose findings are known exactly. A toy, not a radiograph.

    facts        a report <-> the facts that it states, exactly
    draw         facts -> pixels
    prepare      draws and packs the data set, makes its tokenizer
    train_vae    trains a small autoencoder for it
"""
