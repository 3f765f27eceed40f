/// A refusal that a person or a client is going to see: an errno and one line of text.
package struct KernelError: Error, CustomStringConvertible, Equatable {
    /// Linux errno number.
    package let code: Int32
    /// One line, without the errno's own text.
    package let message: String

    package init(_ code: Int32, _ message: String) {
        self.code = code
        self.message = message
    }

    package init(code: Int32, message: String) {
        self.init(code, message)
    }

    package var description: String { message }
}
