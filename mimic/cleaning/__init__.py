"""What an image cannot show leaves the report: dates, comparisons, names.

    rules        --clean rules: which rules there are, in which order, and the guard on each
    context      what speaks of the exam, of people and of plans: views, history, advice
    change       comparisons with earlier films: they go
    now          words of change: what is left speaks of today
    blanks       dates, clock times and the blanks of de-identification
    words        the words that decide: findings, sides, sizes, negation, doubt
    sentences    a report cut into sentences, and sentences made whole again
    llm          --clean llm: a language model rewrites; prompts.txt holds the instructions
    endpoint     the server of that model: its address, and one request
    guards       what an answer must not lose or add
"""
