import java.io.IOException;
import java.net.ServerSocket;
import java.net.Socket;

/** Answers what it reads, and says with which error its connection ended. */
class Server {
    public static void main(String[] args) throws IOException {
        try (var listener = new ServerSocket(Integer.parseInt(args[0]))) {
            while (true) {
                var c = listener.accept();
                var thread = new Thread(() -> serve(c));
                thread.setDaemon(true);
                thread.start();
            }
        }
    }

    static void serve(Socket c) {
        try (c) {
            c.getInputStream().transferTo(c.getOutputStream());
            System.out.println("ended");
        } catch (IOException e) {
            // Java gives no errno, only the text of strerror(3).
            var timedOut = "Connection timed out".equals(e.getMessage());
            System.out.println("ended " + (timedOut ? "ETIMEDOUT" : e));
        }
    }
}
