package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// network carries all that members say to each other. Each member tells the others to dial its proxy, and the proxy
// knows who dials: it asks the kernel which of the members' processes holds the other end of the connection. So
// faults are chosen for each pair and direction, whatever is spoken, and members need not bind to addresses.
//
// A fault is one of two kinds. What concerns bytes is chosen by who sends them: they are late, or they stay where they
// are until they may go on. What concerns connections is chosen by who dials: they are reset, and new ones are, too.
type network struct {
	proxies []*proxy
	// Bytes and connections that some fault has met: one that meets nothing tests nothing.
	met atomic.Int64

	mutex sync.Mutex
	// Closed and replaced whenever a fault changes: whoever waits for one looks again.
	changed chan struct{}
	faults  map[direction]fault
	open    map[*connection]struct{}
	// No more connections: the cluster is discarded.
	isOver bool
}

// direction is a pair of members, by their position.
type direction struct{ from, to int }

type fault struct {
	delay     time.Duration
	isSilent  bool
	isRefused bool
}

// proxy stands before one member's peer port. While that member is dead nobody listens, as behind a real kernel.
type proxy struct {
	network  *network
	position int
	at       string
	target   string
	member   *member
	listener net.Listener
}

type connection struct {
	direction
	front, back *net.TCPConn
}

func newNetwork() *network {
	return &network{
		changed: make(chan struct{}),
		faults:  map[direction]fault{},
		open:    map[*connection]struct{}{},
	}
}

func (n *network) add(at, target string, member *member) {
	n.proxies = append(n.proxies, &proxy{
		network: n, position: len(n.proxies), member: member,
		at: strings.TrimPrefix(at, "http://"), target: strings.TrimPrefix(target, "http://"),
	})
}

// set changes what happens to the bytes from one member to another, and to the connections that it dials.
func (n *network) set(from, to int, change func(*fault)) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.setLocked(from, to, change)
}

func (n *network) setLocked(from, to int, change func(*fault)) {
	at := direction{from, to}
	fault := n.faults[at]
	change(&fault)
	n.faults[at] = fault
	close(n.changed)
	n.changed = make(chan struct{})
	if fault.isRefused {
		n.resetLocked(func(c *connection) bool { return c.direction == at })
	}
}

// both does it in both directions.
func (n *network) both(one, other int, change func(*fault)) {
	n.set(one, other, change)
	n.set(other, one, change)
}

func (n *network) heal() {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	for at := range n.faults {
		n.setLocked(at.from, at.to, func(f *fault) { *f = fault{} })
	}
}

// reset resets connections between two members, whoever dialled. What was on its way is lost.
func (n *network) reset(one, other int) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.resetLocked(func(c *connection) bool {
		return c.direction == direction{one, other} || c.direction == direction{other, one}
	})
}

func (n *network) resetLocked(which func(*connection) bool) {
	for c := range n.open {
		if which(c) {
			c.reset()
			n.met.Add(1)
			delete(n.open, c)
		}
	}
}

func (c *connection) reset() {
	for _, end := range []*net.TCPConn{c.front, c.back} {
		// Nothing that waits in the kernel is still sent.
		end.SetLinger(0)
		end.Close()
	}
}

func (n *network) discard() {
	n.mutex.Lock()
	n.isOver = true
	n.resetLocked(func(*connection) bool { return true })
	close(n.changed)
	n.changed = make(chan struct{})
	n.mutex.Unlock()
	for _, proxy := range n.proxies {
		proxy.close()
	}
}

// of says what holds for a direction, and gives a channel that is closed when that changes.
func (n *network) of(at direction) (fault, <-chan struct{}, bool) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	return n.faults[at], n.changed, n.isOver
}

// listen opens the port anew. Somebody may still hold it for a moment.
func (p *proxy) listen() error {
	var err error
	for range 100 {
		var listener net.Listener
		if listener, err = net.Listen("tcp", p.at); err == nil {
			p.listener = listener
			go p.accept(listener)
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func (p *proxy) close() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
}

func (p *proxy) accept(listener net.Listener) {
	for {
		front, err := listener.Accept()
		if err != nil {
			return
		}
		go p.serve(front.(*net.TCPConn))
	}
}

func (p *proxy) serve(front *net.TCPConn) {
	dialler, isKnown := p.network.dialler(front)
	if !isKnown {
		front.SetLinger(0)
		front.Close()
		return
	}
	back, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		front.SetLinger(0)
		front.Close()
		return
	}
	c := &connection{direction{dialler, p.position}, front, back.(*net.TCPConn)}
	n := p.network
	n.mutex.Lock()
	if n.isOver || n.faults[c.direction].isRefused {
		n.met.Add(1)
		n.mutex.Unlock()
		c.reset()
		return
	}
	n.open[c] = struct{}{}
	n.mutex.Unlock()
	var ends sync.WaitGroup
	ends.Go(func() { n.carry(c.front, c.back, c.direction) })
	ends.Go(func() { n.carry(c.back, c.front, direction{c.to, c.from}) })
	ends.Wait()
	n.mutex.Lock()
	delete(n.open, c)
	n.mutex.Unlock()
	c.front.Close()
	c.back.Close()
}

// piece is what was read at once, or an end.
type piece struct {
	bytes []byte
	due   time.Time
}

// Bytes that one direction of a connection holds back are at most so many pieces; then its sender waits.
const (
	piecesMax  = 256
	pieceBytes = 32 << 10
)

// carry moves the bytes of one direction. The end of a connection takes the same way as its bytes: a member that dies
// behind a silent link is not seen to be dead.
func (n *network) carry(from, to *net.TCPConn, at direction) {
	pieces := make(chan piece, piecesMax)
	go func() {
		defer close(pieces)
		for {
			buffer := make([]byte, pieceBytes)
			length, err := from.Read(buffer)
			fault, _, _ := n.of(at)
			due := time.Now().Add(fault.delay)
			if fault.delay > 0 {
				n.met.Add(1)
			}
			if length > 0 {
				pieces <- piece{buffer[:length], due}
			}
			if err != nil {
				pieces <- piece{nil, due}
				if err != io.EOF {
					pieces <- piece{nil, due}
				}
				return
			}
		}
	}()
	ends := 0
	for piece := range pieces {
		time.Sleep(time.Until(piece.due))
		for {
			fault, changed, isOver := n.of(at)
			if !fault.isSilent || isOver {
				break
			}
			n.met.Add(1)
			<-changed
		}
		switch {
		case piece.bytes != nil:
			// Once nobody takes them, the rest is read and dropped, and the other direction goes on by itself.
			to.Write(piece.bytes)
		case ends == 0:
			ends++
			to.CloseWrite()
		default:
			// The sender is gone without a word, and so is what it would have heard.
			to.SetLinger(0)
			to.Close()
		}
	}
	// A half that has ended takes the other with it: nobody here sends on behind his own end.
	to.CloseRead()
	from.Close()
}

// dialler finds the member whose process holds the other end.
func (n *network) dialler(front *net.TCPConn) (int, bool) {
	inode, err := socketInode(front.RemoteAddr().(*net.TCPAddr), front.LocalAddr().(*net.TCPAddr))
	if err != nil {
		return 0, false
	}
	for position, proxy := range n.proxies {
		if pid := proxy.member.pid(); pid != 0 && holdsSocket(pid, inode) {
			return position, true
		}
	}
	return 0, false
}

// socketInode finds the socket with these ends in the kernel's table.
func socketInode(local, remote *net.TCPAddr) (string, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	wanted := tableAddress(local) + " " + tableAddress(remote) + " "
	at := strings.Index(string(table), wanted)
	if at < 0 {
		return "", fmt.Errorf("no socket %v -> %v", local, remote)
	}
	line, _, _ := strings.Cut(string(table[at:]), "\n")
	// From the local address on: both addresses, state, queues, timer, retransmits, uid, timeout, inode.
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return "", fmt.Errorf("a line of /proc/net/tcp: %q", line)
	}
	return fields[8], nil
}

// tableAddress writes an address as /proc/net/tcp does: the word as this machine reads it, then the port.
func tableAddress(address *net.TCPAddr) string {
	ip := address.IP.To4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], address.Port)
}

func holdsSocket(pid int, inode string) bool {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return false
	}
	for _, entry := range entries {
		if link, err := os.Readlink(folder + "/" + entry.Name()); err == nil && link == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
