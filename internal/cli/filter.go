package cli

import (
	"github.com/spf13/cobra"

	"deadpeer/internal/conn"
)

// filterTopic is what deadpeer help filter shows: a command that does nothing
// is a topic to cobra.
func filterTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "filter",
		Short: "How connections are selected, and what the verdicts mean",
		Long: `FILTER selects connections in the language of ss(8), with predicates besides. It
is one argument or several; what the shell would take for itself, ( ) < > ! *,
is to be quoted.

  [state STATE]... [exclude STATE]... EXPRESSION

  state established and ( sport = :5432 or dst 10.0.0.0/8 )
  heard > 10m and not comm = sshd

Predicates are joined by or, by and, which may be left out, and by not, from the
loosest to the tightest. Numbers, ports and times take = != < <= > >=, the
others = and !=; where there is none, = is meant.

  src dst              ADDR, ADDR/LEN, ADDR:PORT, [V6]:PORT, :PORT, *:PORT
  sport dport          port, by number or name, with or without a colon
  heard sent           how long ago anything came from the peer, or data went to
                       it: 90s, 10m, 2h, 1d
  rtt                  smoothed round-trip time: 40ms
  recv-q send-q        bytes that the program has not read, or the peer not
                       acknowledged
  verdict              see below; check finds more of them than scan
  timer                none, retransmit, keepalive, time-wait or persist
  family               ipv4 or ipv6
  pid comm             of a program that holds the connection; comm is its name,
                       in which * ? and [a-z] stand for others
  unit container       its systemd unit, its container; with * ? [a-z], too
  uid inode cookie     of the socket; the cookie tells it from every other
  netns                inode of its network namespace
  mark fwmark          of the socket: N; fwmark also N/MASK
  dev                  interface that it is bound to, by name or index
  cgroup               cgroup v2 of the socket, by path or id
  blind                the kernel would never give it up; takes no value
  autobound            its local port is one of those that are chosen for
                       programs; takes no value

States: established, syn-sent, syn-recv, fin-wait-1, fin-wait-2, time-wait,
closed, close-wait, last-ack, listening and closing; all, connected,
synchronized, bucket and big for several. Without any, connections are seen that
ss shows: all but those listening, closed, in syn-recv or in time-wait.

Verdicts:

  alive     it answered; in scan, which does not ask: heard within --fresh
  quiet     scan only: nothing heard for longer than that
  suspect   some questions were not answered, too few for dead
  dead      unreachable from here
  stuck     it answers, but data to it has not moved for --stuck-after
  leaked    the peer closed --leaked-after ago or more, the program has not
  closing   on its way out by itself
  unknown   could not be asked, as its reason says`,
	}
}

// completeFilter completes the words of a filter.
func completeFilter(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return append(conn.Predicates(), "and", "or", "not"), cobra.ShellCompDirectiveNoFileComp
}
