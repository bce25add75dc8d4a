"""From raw chest X-ray collections to packed data sets; prepare_mimic.py tells the story.

    sources      where images and reports lie: MIMIC-CXR, Open-I, a table of your own
    annotations  the files of others that say which report belongs to which image
    splits       who trains and who tests, and the guard against patients who do both
    sections     a report -> its sections, by the official rules
    cleaning/    what an image cannot show (dates, comparisons) leaves the text
    rows         the rows of a study: prompt, report, labels
    pixels       an image file -> the square that the network sees
    shards       work shared out over processes, resumable
    check        looks at a finished data set
"""
