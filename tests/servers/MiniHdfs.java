import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.hdfs.MiniDFSCluster;

/**
 * Hadoop's own cluster, one name node and one data node, with some files; serves until its standard input ends. The first line that it prints is a
 * JSON object with the web port. After a line "rewrite" on its input, /dir/plain.bin is written anew with other bytes, and it prints "done".
 *
 * Run as: java -cp "$cache/hadoop/*" tests/servers/MiniHdfs.java
 */
public class MiniHdfs {
    public static void main(String[] arguments) throws Exception {
        PrintStream out = System.out;
        System.setOut(System.err);
        Path folder = Files.createTempDirectory("hdfs");
        Configuration configuration = new Configuration();
        configuration.set(MiniDFSCluster.HDFS_MINIDFS_BASEDIR, folder.toString());
        configuration.set("dfs.namenode.http-address", "127.0.0.1:0");
        configuration.set("dfs.permissions.enabled", "true");
        try (MiniDFSCluster cluster = new MiniDFSCluster.Builder(configuration).numDataNodes(1).build()) {
            cluster.waitActive();
            FileSystem files = cluster.getFileSystem();
            write(files, "/dir/plain.bin", 300_000);
            write(files, "/dir/empty", 0);
            write(files, "/dir/a b%+&#=.txt", 40);
            write(files, "/dir/ünïcode/文.txt", 60);
            write(files, "/dir/deep/er/still", 10);
            write(files, "/other/x", 5);
            files.mkdirs(new org.apache.hadoop.fs.Path("/dir/folder"));
            out.println("{\"port\": " + cluster.getNameNode().getHttpAddress().getPort() + "}");
            out.flush();
            try (var input = new java.io.BufferedReader(new java.io.InputStreamReader(System.in))) {
                for (String line = input.readLine(); line != null; line = input.readLine()) {
                    files.delete(new org.apache.hadoop.fs.Path("/dir/plain.bin"), false);
                    write(files, "/dir/plain.bin", 300_001);
                    out.println("done");
                    out.flush();
                }
            }
        } finally {
            try (var all = Files.walk(folder)) {
                all.sorted(Comparator.reverseOrder()).forEach(path -> path.toFile().delete());
            }
        }
        System.exit(0);
    }

    /** The content of a file is its path without the first slash in UTF-8, repeated up to its length. */
    private static void write(FileSystem files, String path, int length) throws Exception {
        byte[] text = path.substring(1).getBytes("UTF-8");
        byte[] content = new byte[length];
        for (int i = 0; i < length; i++) {
            content[i] = text[i % text.length];
        }
        try (OutputStream out = files.create(new org.apache.hadoop.fs.Path(path))) {
            out.write(content);
        }
    }
}
