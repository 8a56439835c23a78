#!/bin/sh
# Case makes no difference.
lines=$(echo "To to TO" | sh tally.sh | wc -l)
[ "$lines" -eq 1 ] || { echo "got $lines lines"; exit 1; }
