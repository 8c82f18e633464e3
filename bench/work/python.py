"""Queens, dictionaries, strings, sorting and JSON: what scripts do. python.py [TIMES]: how much of it."""
import json
import sys


def queens(n, row=0, columns=0, up=0, down=0):
    if row == n:
        return 1
    found = 0
    for column in range(n):
        a, b = row + column, row - column + n
        if not (columns >> column & 1 or up >> a & 1 or down >> b & 1):
            found += queens(n, row + 1, columns | 1 << column, up | 1 << a, down | 1 << b)
    return found


times = int(sys.argv[1]) if len(sys.argv) > 1 else 1
words = {}
for i in range(60000 * times):
    word = "w%d" % (i * 7919 % 5003)
    words[word] = words.get(word, 0) + len(word)
text = json.dumps(sorted(words.items(), key=lambda item: (item[1], item[0])))
print(sum(queens(7) for _ in range(times)), len(text), sum(count for _, count in json.loads(text)))
