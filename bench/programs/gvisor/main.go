// A server over gVisor's netstack on a tap, as the library is shipped: for the client of the load program. Port 5001 takes
// all, 5002 sends for ever, 6000 to 6015 send back.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/link/tun"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const nic = 1

func check(what string, err tcpip.Error) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

// openOffloading makes a tap with virtio headers, checksum and segmentation offload.
func openOffloading(name string) (int, error) {
	descriptor, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	var request struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:15], name)
	request.flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	_, _, number := unix.Syscall(unix.SYS_IOCTL, uintptr(descriptor), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request)))
	if number != 0 {
		return -1, number
	}
	const offloads = 1 | 2 // TUN_F_CSUM, TUN_F_TSO4
	if _, _, number := unix.Syscall(unix.SYS_IOCTL, uintptr(descriptor), unix.TUNSETOFFLOAD, offloads); number != 0 {
		return -1, number
	}
	return descriptor, nil
}

func takeAll(connection net.Conn) {
	buffer := make([]byte, 65536)
	for {
		if _, err := connection.Read(buffer); err != nil {
			return
		}
	}
}

func sendForEver(connection net.Conn) {
	buffer := make([]byte, 65536)
	for {
		if _, err := connection.Write(buffer); err != nil {
			return
		}
	}
}

func sendBack(connection net.Conn) {
	buffer := make([]byte, 2048)
	for {
		count, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err := connection.Write(buffer[:count]); err != nil && err != io.EOF {
			return
		}
	}
}

func serve(netstack *stack.Stack, address tcpip.FullAddress, run func(net.Conn)) {
	listener, err := gonet.ListenTCP(netstack, address, ipv4.ProtocolNumber)
	if err != nil {
		log.Fatalf("port %d: %v", address.Port, err)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				log.Fatalf("accept: %v", err)
			}
			go func() {
				defer connection.Close()
				run(connection)
			}()
		}
	}()
}

func main() {
	name := flag.String("tap", "tap0", "name of the tap")
	own := flag.String("address", "10.11.12.13", "IPv4 address of the stack")
	mtu := flag.Uint("mtu", 65520, "MTU of the tap")
	segments := flag.Bool("gso", false, "frames of up to 64 KiB in both directions; needs a library that lets a tap have them")
	flag.Parse()

	open := tun.OpenTAP
	options := fdbased.Options{
		MTU: uint32(*mtu), EthernetHeader: true, Address: tcpip.LinkAddress("\x02\x00\x00\x09\x09\x03"),
	}
	if *segments {
		open = openOffloading
		options.GSOMaxSize = 65000
		options.RXChecksumOffload = true
	}
	descriptor, err := open(*name)
	if err != nil {
		log.Fatalf("tap %s: %v", *name, err)
	}
	options.FDs = []int{descriptor}
	endpoint, err := fdbased.New(&options)
	if err != nil {
		log.Fatalf("endpoint: %v", err)
	}
	netstack := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	// Selective acknowledgments are off by default in the library, on in every product that uses it.
	sack := tcpip.TCPSACKEnabled(true)
	check("SACK", netstack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	check("interface", netstack.CreateNIC(nic, endpoint))
	address := tcpip.Address(net.ParseIP(*own).To4())
	check("address", netstack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: address, PrefixLen: 24},
	}, stack.AddressProperties{}))
	netstack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})

	serve(netstack, tcpip.FullAddress{NIC: nic, Addr: address, Port: 5001}, takeAll)
	serve(netstack, tcpip.FullAddress{NIC: nic, Addr: address, Port: 5002}, sendForEver)
	for port := uint16(6000); port < 6016; port++ {
		serve(netstack, tcpip.FullAddress{NIC: nic, Addr: address, Port: port}, sendBack)
	}
	fmt.Println("ready")
	select {}
}
