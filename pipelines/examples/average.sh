# average.sh NUMBERS MEAN: the mean of the lines of NUMBERS.
set -eu
mean=$(awk '{ sum += $1 } END { printf "%.6f", sum / NR }' "$1")
echo "$mean" >"$2"
echo "::sbp result mean=$mean"
echo "::sbp progress 1/1 files"
