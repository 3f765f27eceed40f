import Testing

import Kernel

/// When the loop asks for a long slice; that it does is tested by Tests/EndToEnd/test_loop_slice.py.
struct LoopSliceTests {
    /// Looks after so many windows with these numbers of ready descriptors in turn.
    private func run(_ load: inout LoopLoad, windows: Int, ready: [Int]) -> Int {
        (0..<windows * LoopLoad.window).reduce(into: 0) { looks, turn in
            if load.count(ready: ready[turn % ready.count]) { looks += 1 }
        }
    }

    @Test func oneThingAtATimeIsFoundAndLeftAgain() {
        var load = LoopLoad()
        #expect(!load.isOneAtATime)
        #expect(run(&load, windows: 1, ready: [1]) == 1)
        #expect(load.isOneAtATime)
        // Neither one nor several: as it was.
        #expect(run(&load, windows: 3, ready: [1, 1, 1, 2]) == 3)
        #expect(load.isOneAtATime)
        #expect(run(&load, windows: 1, ready: [1, 2]) == 1)
        #expect(!load.isOneAtATime)
        #expect(run(&load, windows: 3, ready: [1, 1, 1, 2]) == 3)
        #expect(!load.isOneAtATime)
    }
}
