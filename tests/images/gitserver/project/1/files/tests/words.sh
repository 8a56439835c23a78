#!/bin/sh
# The most frequent word comes first.
first=$(echo "to be or not to be to" | sh tally.sh | head -n 1)
[ "$(echo $first)" = "3 to" ] || { echo "got: $first"; exit 1; }
