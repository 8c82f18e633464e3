# The kernel's own code changes while programs run: function tracing, probes and static keys go on and off, and the programs'
# results stay the same.
set -e
tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs tracing $tracing
sum() { seq 1 1000 | sha256sum; }
want=$(sum)
(while [ ! -e /tmp/stop ]; do [ "$(sum)" = "$want" ] || touch /tmp/differs; done) &
worker=$!

if grep -qw function $tracing/available_tracers; then
    for _ in 1 2; do
        echo function >$tracing/current_tracer
        sleep 0.1
        echo nop >$tracing/current_tracer
    done
    echo traced
fi
echo 'p:opened do_sys_openat2' >>$tracing/kprobe_events
echo 'r:returned do_sys_openat2' >>$tracing/kprobe_events
for _ in 1 2 3; do
    echo 1 >$tracing/events/kprobes/enable
    for _ in 1 2 3 4 5; do cat /etc/hostname >/dev/null; done
    echo 0 >$tracing/events/kprobes/enable
done
hits=$(awk '$1 == "opened" { print $2 }' $tracing/kprobe_profile)
: >$tracing/kprobe_events
[ "$hits" -ge 15 ] || { echo "the probe was hit $hits times"; exit 1; }
for _ in 1 2 3 4 5; do
    for key in 1 0; do
        echo $key >/proc/sys/kernel/sched_schedstats
        echo $key >$tracing/events/sched/sched_switch/enable
    done
done
touch /tmp/stop
wait $worker
[ ! -e /tmp/differs ] || { echo "a result changed while code was patched"; exit 1; }
echo "probed and switched"
