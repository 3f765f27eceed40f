#!/bin/sh
# What a packet script beside this one calls.
sysctl -q net.inet.tcp.delacktime=100 net.inet.tcp.quickacks=0 > /dev/null
