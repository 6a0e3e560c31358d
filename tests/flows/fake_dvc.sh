#!/bin/sh
# Stands for DVC where a test needs many runs: `fake_dvc.sh repro --single-item STAGE`.
# behaviour/STAGE holds a line a run, "SECONDS CODE TEXT"; the last one stands for all further runs. Starts and ends go
# to starts and ends, as "STAGE TIME DEVICE".
for stage; do :; done
echo "$stage $(date +%s.%N) $CUDA_VISIBLE_DEVICES" >>starts
number=$(grep -c "^$stage " starts)
seconds=0 code=0 text=fine
while read -r one two three && [ "$number" -gt 0 ]; do
  seconds=$one code=$two text=$three number=$((number - 1))
done <<LINES
$(cat "behaviour/$stage" 2>/dev/null || echo "0 0 fine")
LINES
sleep "$seconds"
printf "$text\n"
echo "$stage $(date +%s.%N) $CUDA_VISIBLE_DEVICES" >>ends
exit "$code"
