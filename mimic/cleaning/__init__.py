"""What an image cannot show leaves the report: dates, comparisons, names.

    words        the words that decide: negation, doubt, findings, sizes, sides
    rules        the rules of --clean rules, each with an example
    change       statements about change: which go, which become statements about now
    llm          --clean llm: a language model rewrites; prompts.txt holds the instructions
    guards       what an answer must not lose or add
"""
