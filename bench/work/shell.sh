# What configure scripts and start-up scripts do: small programs, pipes, substitutions, loops.
total=0
for i in $(seq 1 40); do
    word=$(echo "item $i" | sed 's/item/number/' | cut -d' ' -f2)
    [ -f "missing-$i" ] || total=$((total + word))
    case $(expr "$i" % 3) in 0) echo "$i" >>list ;; *) true ;; esac
done
echo "$total $(sort -rn list | head -1) $(wc -l <list)"
rm list
