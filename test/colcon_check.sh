#!/usr/bin/env bash
# Builds and tests the package with colcon in a folder of its own, then starts the installed node and stops it again.
# Usage: colcon_check.sh BIN   (BIN: folder of the environment's programs)
set -euo pipefail
bin=$(cd "$1" && pwd)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true; rm -rf "$work"' EXIT
export PATH="$bin:$PATH" ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-71}
cd "$work"
colcon --log-base log build --base-paths "$root" --build-base build --install-base install
# The suite itself has run; here it is enough that colcon finds and runs tests of the package.
colcon --log-base log test --base-paths "$root" --build-base build --install-base install \
    --pytest-args -q -m "not slow and not dds and not kernels" test/test_package.py test/test_images.py test/ops/test_pooled_cross_attention.py
colcon --log-base log test-result --test-result-base build --verbose | tee results
grep -q "Summary: [1-9]" results || { echo "colcon ran no test" >&2; exit 1; }

set +u # colcon's setup script reads unset variables
. install/local_setup.bash
set -u
share=$work/install/isfl_ros/share/isfl_ros
node=$work/install/isfl_ros/lib/isfl_ros/fusion_node
for file in models/isfl/weights.safetensors config/fusion_node.yaml config/rviz/fusion.rviz launch/fusion.launch.py; do
    test -f "$share/$file" || { echo "not installed: $file" >&2; exit 1; }
done
cd /
"$bin/python" -c "import sys, isfl_ros; sys.exit(None if isfl_ros.__file__.startswith(sys.argv[1]) else isfl_ros.__file__ + ': not the installed package')" "$work/install"
"$node" --ros-args --params-file "$share/config/fusion_node.yaml" -r __ns:=/colcon_check >"$work/node.log" 2>&1 &
pid=$!
for _ in $(seq 120); do
    grep -q "active: waiting for pairs" "$work/node.log" && break
    kill -0 "$pid" 2>/dev/null || { cat "$work/node.log"; echo "the installed node ended" >&2; exit 1; }
    sleep 0.5
done
grep -q "active: waiting for pairs" "$work/node.log" || { cat "$work/node.log"; echo "the installed node did not become active" >&2; kill "$pid"; exit 1; }
kill -INT "$pid"
wait "$pid" || { status=$?; cat "$work/node.log"; echo "the installed node ended with $status" >&2; exit 1; }
echo "colcon: built, tested, installed node ran and ended with 0"
