"""From raw chest X-ray collections to packed data sets; prepare_mimic.py tells the story.

    sources      where images and reports lie: MIMIC-CXR, Open-I, a table of your own
    openi, own_table    the last two of these
    items        what all of them give: one item an image
    annotations  what others wrote down about the images: labels, texts, a split, lists of ids
    splits       who trains, who validates and who tests
    sections     a report -> its sections, by the official rules; headings: those of other texts
    cleaning/    what an image cannot show (dates, comparisons) leaves the text
    rows         the row of an image: question, report, labels
    pixels       an image file -> the square that the network sees
    shards       the images of several data sets, by many processes, resumable
    check        looks before and after
    leaks        guards against patients who train and test
"""
