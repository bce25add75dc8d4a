"""What every room uses; knows no model.

    cli          a dataclass of settings becomes a command line; bad input becomes one sentence
    ending       how the processes of one run end together, and at once
    shortage     too little memory ends in a sentence that names the options that help
    streams      standard input, output and error that are closed, full or of a small encoding
    locks        one process at a time writes to a place
    spellings    options by the names that other software has for them
    processes    ranks, device, random numbers by key, autocast
    files        one way to write a file whole or not at all, one way to read JSON lines
    tables       CSV files, gzipped or not; published ones row by row, anybody's own as a whole
    columns      which column of somebody's table is the image, the report, the patient
    prompts      reports to draw from a text file or a table; their pictures, written as they come
    images       the one reader of image files; PNG with settings inside; captioned grids. It reads
                 by pillow (PNG to GIF) and dicom; grey has their arithmetic
    finite       NaN and infinity found before anything is made of them
    platforms    what Linux, macOS and Windows do differently
    worklist     long work shared out over processes, continued after an interruption
    packed       the packed data set on disk, written and read
"""
